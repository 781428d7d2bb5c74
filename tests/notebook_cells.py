"""The code of a notebook, run in the process of a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from beartype import beartype
from jaxtyping import jaxtyped
from matplotlib.text import Text

from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.data.pairs import check_both_sides
from polydetox.mechanism.probe import Probe
from polydetox.models.checkpoints import load_tokenizer

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def _checked(tree: ast.Module, space: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The functions that a cell has put into ``space``, with their declared shapes and types checked at every call."""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.returns]
    return {name: jaxtyped(space[name], typechecker=beartype) for name in names}


def run_cells(notebook: str, *, until: str | None = None, **parameters: Any) -> dict[str, Any]:
    """Run the code cells of ``notebooks/<notebook>.ipynb`` with these parameters; returns its namespace.

    ``until`` is the id of the last cell that runs, by default that of the last cell.
    ``shown`` in the namespace lists what the cells show, as HTML, Markdown or text, and the texts of their figures.
    """
    shown: list[str] = []
    space: dict[str, Any] = {"__name__": "__main__"}

    def show(*values: Any) -> None:
        for value in values:
            ways = [getattr(value, name) for name in ("_repr_html_", "_repr_markdown_") if hasattr(value, name)]
            shown.append(next((text for way in ways if (text := way())), "" if value is None else repr(value)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", show)
        for number, cell in enumerate(nbformat.read(next(NOTEBOOKS.rglob(f"{notebook}.ipynb")), as_version=4).cells):
            if cell.cell_type != "code":
                continue
            tree = ast.parse(cell.source)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"{notebook}, cell {number}", "exec"), space)
            if isinstance(last, ast.Expr):
                show(eval(compile(ast.Expression(last.value), f"{notebook}, cell {number}", "eval"), space))
            for figure in map(plt.figure, plt.get_fignums()):
                figure.draw_without_rendering()  # makes its texts, and no picture
                shown += [text.get_text() for text in figure.findobj(Text)]
            plt.close("all")
            if "parameters" in cell.metadata.get("tags", []):
                space |= parameters
            if cell.id == until:
                break
    return space | {"shown": shown}


def some_cells(notebook: str, settings: Any, stage: Any, cells: Sequence[str] = (), **given: Any) -> dict[str, Any]:
    """The namespace of a notebook after some of its code cells, named by the ends of their ids; none: all of them.

    ``given`` names stand for what the notebook would make of its own, in every cell.
    """
    space: dict[str, Any] = {"__name__": "__main__", "settings": settings, "stage": stage}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydetox.core.notebook.begin", lambda *_: (settings, stage))
        for cell in nbformat.read(next(NOTEBOOKS.rglob(f"{notebook}.ipynb")), as_version=4).cells:
            wanted = not cells or cell.id.endswith(tuple(cells))
            if cell.cell_type == "code" and wanted and "parameters" not in cell.metadata.get("tags", []):
                exec(compile(cell.source, f"{notebook}.ipynb, cell {cell.id}", "exec"), space)
                # A whole notebook runs as it is, since checked functions cannot be sent to another process.
                space |= (_checked(ast.parse(cell.source), space) if cells else {}) | given
    return space


def definitions(notebook: str, **given: Any) -> SimpleNamespace:
    """The functions and constants that a notebook defines, with its imports; its other names only as ``given``."""
    space: dict[str, Any] = {"__name__": "__main__", **given}
    for cell in nbformat.read(next(NOTEBOOKS.rglob(f"{notebook}.ipynb")), as_version=4).cells:
        tree = ast.parse(cell.source if cell.cell_type == "code" else "")
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)
                     or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper())]  # fmt: skip
        exec(compile(tree, f"{notebook}.ipynb, cell {cell.get('id')}", "exec"), space)
        space |= _checked(tree, space)
    return SimpleNamespace(**space)


def run_cell(notebook: str, identifier: str, **names: Any) -> dict[str, Any]:
    """Run one cell of a notebook, given the names that it needs; returns its namespace."""
    cells = nbformat.read(next(NOTEBOOKS.rglob(f"{notebook}.ipynb")), as_version=4).cells
    (source,) = (cell.source for cell in cells if cell.id == identifier)
    exec(compile(source, f"{notebook}, cell {identifier}", "exec"), names)
    names |= _checked(ast.parse(source), names)
    return names


def summarise(
    scores: pd.DataFrame, language: str, threshold: float, *, samples: int, confidence: float, seed: int
) -> dict[str, Any]:
    """The metrics of one language that ``evaluate.ipynb`` writes, from its scores."""
    settings = SimpleNamespace(lang=language, bootstrap_samples=samples, confidence=confidence, seed=seed)
    cells, given = ("1a0d1d55", "metrics-means", "metrics-all"), {"scores": scores, "threshold": threshold}
    return some_cells("evaluate", settings, SimpleNamespace(), cells, **given)["metrics"]


def merge(base: Path, tuned: Path, folder: Path) -> tuple[Path, float]:
    """The weights that ``merge.ipynb`` writes, and the largest difference of a logit that it found."""
    space = run_cells("merge", checkpoint=str(base), tuned=str(tuned), output_folder=str(folder))
    return space["weights"], space["difference"]


def packaged_prose(max_words: int) -> pd.Series:
    """The sentences that ``control_corpus.ipynb`` makes its neutral half of."""
    return run_cell("control_corpus", "control-corpus-prose", re=re, pd=pd)["packaged_prose"](max_words)["text"]


def train_probe(features: np.ndarray, labels: np.ndarray, **settings: Any) -> Probe:
    """The probe that ``probe.ipynb`` trains on these features and labels."""
    texts = pd.DataFrame({"label": labels, "part": "train"})
    cells = ("924e7e84", "31d586c8", "probe-loop", "probe-probe")
    return some_cells("probe", checked("probe", **settings), None, cells, features=features, texts=texts,
                      logistic_regression=lambda *_: None)["probe"]  # fmt: skip


def train_dpo(weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Any, folder: Path):
    """The training of ``dpo.ipynb`` on these pairs: its log and its figures."""
    space = dpo_cells(weights, train, held_out, settings, folder, "e0413019")
    return space["log"], space["metrics"]


def split_pairs(pairs: pd.DataFrame, held_out_share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The pairs of ``dpo.ipynb`` to train on, and the held-out ones."""
    names = {"np": np, "UserError": UserError, "check_both_sides": check_both_sides}
    return run_cell("dpo", "dpo-split-pairs", **names)["split_pairs"](pairs, held_out_share, seed)


def make_trainer(weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Any, folder: Path):
    """The trainer of ``dpo.ipynb``, before it trains."""
    return dpo_cells(weights, train, held_out, settings, folder, "5c1e0a05")["trainer"]


def dpo_cells(
    weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Any, folder: Path, last: str
) -> dict[str, Any]:
    """The namespace of ``dpo.ipynb`` after the cell ``last``, given what its first cells load."""
    stage = SimpleNamespace(folder=folder)
    given = {"weights": weights, "tokenizer": load_tokenizer(weights), "train": train, "held_out": held_out}
    skipped = ("3c840eff", "32e677ea", "dpo-labels", "dpo-split")  # the parameters; what loads, labels and splits pairs
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydetox.core.notebook.begin", lambda *_: (settings, stage))
        for cell in nbformat.read(NOTEBOOKS / "preference/dpo.ipynb", as_version=4).cells:
            if cell.cell_type == "code" and cell.id not in skipped:
                exec(compile(cell.source, f"dpo.ipynb, cell {cell.id}", "exec"), space)
                space |= given
            if cell.id == last:
                return space
    raise AssertionError(f"dpo.ipynb has no cell {last}")
