"""What a stage notebook does first: check its parameters and open its stage."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError, nearest
from polydetox.core.parameters import Settings, declared, validated

# Names that IPython itself puts into a notebook.
_IPYTHON_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open", "display"})


def begin(stage: str, namespace: Mapping[str, Any]) -> tuple[Settings, Stage]:
    """The checked parameters of a notebook, of its ``globals()`` after its parameters and imports, and its open stage.

    papermill only warns of a parameter that the notebook does not have; here it is an error that names the nearest one.
    """
    where = f"notebook {stage}.ipynb"
    annotations = namespace.get("__annotations__", {})
    given = {
        name: value
        for name, value in namespace.items()
        if not (name.startswith("_") or name.isupper() or name in _IPYTHON_NAMES)  # upper case: imported constants
        and not (callable(value) or isinstance(value, types.ModuleType))
    }
    if unknown := next((name for name in given if name not in annotations), None):
        raise UserError(f"{where} has no parameter {unknown!r}{nearest(unknown, annotations)}")
    if hidden := [name for name in annotations if callable(namespace.get(name))]:
        raise UserError(f"{where}: an import takes the name of the parameter {hidden[0]!r}; rename it")
    settings = validated(declared(stage, annotations, namespace), given, where)
    folder = paths.given(settings.output_folder) if settings.output_folder else paths.runs() / "manual" / stage
    return settings, Stage(stage, folder, settings.model_dump(exclude={"output_folder"}))
