"""Open a job of a run in Jupyter: its notebook as it is now, with the parameters that the job had."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from polydetox.core import paths
from polydetox.core.errors import UserError


def opened(job: Path, folder: Path | None = None) -> Path:
    """Write the notebook of a job with its parameters filled in, and return its path.

    ``job`` is the folder of a stage, a file in it, or the partially executed notebook of a failed one. What the
    notebook writes goes beside the copy, by default below ``runs/manual/``, and so never over a run's artefacts.
    """
    import nbformat
    from papermill import execute_notebook

    failed = job.suffix == ".ipynb" and job.stem != "notebook"
    stage = job if job.is_dir() or failed else job.parent
    executed = stage if failed else stage / "notebook.ipynb"
    where = paths.relative(executed)
    try:
        ran = nbformat.read(executed, as_version=4).metadata["papermill"]
        source, parameters = Path(ran["input_path"]), dict(ran["parameters"])
    except FileNotFoundError:
        raise UserError(f"{where}: no such notebook; name the folder of a job that has run") from None
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{where}: not executed by papermill ({type(error).__name__})") from None
    if not source.is_file():
        raise UserError(f"{paths.relative(source)}: the notebook that this job executed is no longer there")
    if folder is None:
        name = stage.with_suffix("") if failed else stage
        below = name.relative_to(paths.runs()) if name.is_relative_to(paths.runs()) else name.name
        folder = paths.runs() / "manual" / below
    if "output_folder" in parameters:
        parameters["output_folder"] = str(folder)
    notebook = execute_notebook(source, None, parameters, prepare_only=True, kernel_name="python3", progress_bar=False)
    # Jupyter starts a kernel in the notebook's folder, papermill in the root, from where paths are named.
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"import os\n\nos.chdir({str(paths.root())!r})"))
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / source.name)
    return folder / source.name


def start(notebook: Path) -> int:
    """Start Jupyter on a notebook and wait for its end; returns its exit status."""
    for application in filter(importlib.util.find_spec, ("jupyterlab", "notebook")):
        environment = os.environ | {"POLYDETOX_ROOT": str(paths.root())}
        return subprocess.run([sys.executable, "-m", application, str(notebook)], env=environment).returncode
    raise UserError(f"Jupyter is not installed here (pip install jupyterlab); see {paths.relative(notebook)}")
