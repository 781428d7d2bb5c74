"""What the pages link: a notebook at its commit and as a download, the data of a figure or table."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from pandas.api.types import is_numeric_dtype

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, read_json, read_parquet
from polydetox.report.masking import COVER, TEXTS
from polydetox.report.notebooks import cell_options, raw, without_machine_paths
from polydetox.results.stages import StageRun

FILES = "_files"  # of an assembled book; the underscore, which the site's folder lacks, lets Quarto pass it over


class Links:
    """The links of an assembled book, whose summary notebooks are ``runs`` by section, and the files they lead to."""

    def __init__(self, book: Path, runs: Mapping[str, StageRun], variables: Mapping[str, str]):
        self.book, self._runs, self._repository = book, runs, variables.get("run_repository", "")
        (book / FILES).mkdir(exist_ok=True)

    def _line(self, links: list[str], run: StageRun, commit: str | None) -> str:
        """Some links and the notebook of a run at its commit, by its name alone where the repository has no address."""
        file, at = html.escape(paths.relative(run.notebook)), f" at {commit[:10]}" if commit else ""
        address = f"{html.escape(self._repository)}/blob/{(commit or '').rstrip('+')}/{file}"
        linked = commit and self._repository.startswith("https://")
        code = f'Code: <a href="{address}">{file}{at}</a>' if linked else f"Code: {file}{at}"
        return raw('<p class="sources">{}</p>'.format(" · ".join([*links, code])))

    def of_figure(self, section: str, label: str, cell: NotebookNode) -> str:
        """What stands below a figure or table of a summary notebook in a chapter: notebook, data as CSV, and code.

        The data are the table that the cell's option ``data`` names, without prompts, continuations and tokens, else
        what the cell shows; a run of before this option has none.
        """
        run, page, name = self._runs[section], f"summary-{section}", f"{label}.csv"
        links = [f'<a href="notebooks/{page}.html#{label}-{page}">Notebook</a>']
        file = run.folder / f"{cell_options(cell.source)[0].get('data')}.parquet"
        shown = "".join(output.get("data", {}).get("text/csv", "") for output in cell.outputs)
        if file.is_file():
            table = read_parquet(file)
            texts = [name for name in TEXTS & set(table.columns) if not is_numeric_dtype(table[name])]
            shown = table.drop(columns=texts).to_csv(index=False)
        if shown:
            (self.book / FILES / name).write_text(shown, "utf-8")
            links.append(f'<a href="{FILES[1:]}/{name}" download>Data (CSV)</a>')
        return self._line(links, run, read_json(run.folder / MANIFEST).get("git_commit"))

    def of_run(self, name: str, run: StageRun, cells: list[NotebookNode], manifest: Mapping[str, Any]) -> str:
        """What stands on top of an executed notebook: itself to download, the command that opens it, and its code.

        The download has no text that the site covers, and not the folder of the run, so that it writes elsewhere.
        """
        kept = deepcopy(cells)
        for cell in kept:
            cell.metadata = nbformat.from_dict({"tags": cell.metadata.get("tags", [])})
            if "injected-parameters" in cell.metadata.tags:
                cell.source = re.sub(r"^(output_folder|parts) = .*\n?", "", cell.source, flags=re.MULTILINE)
            for output in cell.get("outputs", []):
                if COVER in output.get("data", {}).get("text/html", ""):
                    del output.data["text/html"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=kept, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.book / FILES / f"{name}.ipynb")
        command = html.escape(f"polydetox open {without_machine_paths(str(run.folder))}")
        links = [f'<a href="../{FILES[1:]}/{name}.ipynb" download>Download</a>', f"Run it: <code>{command}</code>"]
        return self._line(links, run, manifest.get("git_commit"))
