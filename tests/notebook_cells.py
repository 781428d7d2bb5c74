"""The code of a notebook, run in the process of a test."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.text import Text

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run_cells(notebook: str, **parameters: Any) -> dict[str, Any]:
    """Run the code cells of ``notebooks/<notebook>.ipynb`` with these parameters; returns its namespace.

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
                figure.canvas.draw()
                shown += [text.get_text() for text in figure.findobj(Text)]
            plt.close("all")
            if "parameters" in cell.metadata.get("tags", []):
                space |= parameters
    return space | {"shown": shown}
