"""What a stage notebook does first: check its parameters and open its stage."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydetox import paths
from polydetox.artifacts import Stage
from polydetox.errors import UserError, nearest
from polydetox.params import STAGES, MethodStage, StageParameters, check_parameters, load_model

# Names that IPython itself puts into a notebook.
_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open", "display"})


def given_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a notebook that has run nothing but its parameters and imports."""
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and not (name.isupper() and isinstance(value, list | tuple | dict))  # imported constants
        and name not in _IPYTHON_NAMES
        and not isinstance(value, types.ModuleType | type)
        and not callable(value)
    }


def begin(stage: str, namespace: Mapping[str, Any]) -> tuple[Any, Stage]:
    """Check the parameters of a notebook and open its stage.

    ``namespace`` is the notebook's ``globals()`` right after its parameters and imports. papermill only warns of a
    parameter that the notebook does not have; here it is a ``UserError`` that names the nearest one.

    Returns the checked parameters (an instance of ``params.STAGES[stage]``) and the open :class:`Stage`.
    """
    given = given_parameters(namespace)
    fields = STAGES[stage].model_fields
    for name in given:
        if name not in fields:
            raise UserError(f"notebooks/{stage}.ipynb has no parameter {name!r}{nearest(name, fields)}")
    if hidden := [name for name in fields if callable(namespace.get(name))]:
        raise UserError(f"notebooks/{stage}.ipynb: an import takes the name of the parameter {hidden[0]!r}; rename it")
    settings = check_parameters(stage, given)
    folder = Path(settings.output_folder) if settings.output_folder else manual_folder(stage, settings)
    recorded = settings.model_dump(exclude={"output_folder"})
    return settings, Stage(stage, folder, recorded)


def manual_folder(stage: str, settings: StageParameters) -> Path:
    """Where a notebook writes that was started by hand, so that it never touches the artefacts of a run."""
    folder = paths.runs() / "manual"
    for key in ("model", "variant", "kind", "prompt_set", "lang"):
        if hasattr(settings, key):
            value = getattr(settings, key)
            folder /= load_model(value).name if key == "model" else value
        if key == "model" and isinstance(settings, MethodStage):
            folder = folder / "control" / settings.method
    return folder / stage
