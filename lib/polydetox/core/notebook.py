"""What a stage notebook does first: check its parameters and open its stage."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError, nearest
from polydetox.core.parameters import Settings, declared, validated

# Names that IPython itself puts into a notebook.
_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open", "display"})


def given_parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a notebook that has run nothing but its parameters and imports."""
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and not name.isupper()  # imported constants
        and name not in _IPYTHON_NAMES
        and not isinstance(value, types.ModuleType | type)
        and not callable(value)
    }


def begin(stage: str, namespace: Mapping[str, Any]) -> tuple[Settings, Stage]:
    """Check the parameters of a notebook and open its stage.

    ``namespace`` is the notebook's ``globals()`` right after its parameters and imports: what its parameters cell has
    annotated is a parameter. papermill only warns of one that the notebook does not have; here it is a ``UserError``
    that names the nearest one.

    Returns the checked parameters and the open :class:`Stage`.
    """
    annotations = namespace.get("__annotations__", {})
    given = given_parameters(namespace)
    for name in given:
        if name not in annotations:
            raise UserError(f"notebook {stage}.ipynb has no parameter {name!r}{nearest(name, annotations)}")
    if hidden := [name for name in annotations if callable(namespace.get(name))]:
        raise UserError(f"notebook {stage}.ipynb: an import takes the name of the parameter {hidden[0]!r}; rename it")
    settings = validated(declared(stage, annotations, namespace), given, f"notebook {stage}.ipynb")
    folder = paths.given(settings.output_folder) if settings.output_folder else paths.runs() / "manual" / stage
    return settings, Stage(stage, Path(folder), settings.model_dump(exclude={"output_folder"}))
