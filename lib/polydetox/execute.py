"""Run one notebook with papermill, the way the workflow runs each stage, or open it in Jupyter.

The kernel is this Python's own, the executed notebook appears under its final name only once the stage has succeeded,
and a stage ends when the run that started it is gone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import in_progress, refuse_secrets
from polydetox.core.errors import UserError

# Set by `polydetox run` to `host:process:Slurm job`, so that a stage does not outlive a run that was killed. The job is
# the one that the run itself is in, usually none.
RUN = "POLYDETOX_RUN"
# A kernel on a cold or shared file system may take minutes; one that dies is noticed at once. papermill gives 60.
_START_SECONDS = 600
# glibc returns each large block to the system and asks for it anew, page by page, for the next tensor of that size:
# a quarter of a training step on a CPU. Keeping them took a sixth more memory at most. OpenMP's threads wait for one
# another in a loop, and take the time of the one that they wait for where other work has the cores: beside eight busy
# processes a training step on two threads took more than twelve times as long, and asleep one and a half times.
COMPUTING = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**32), "OMP_WAIT_POLICY": "passive"}
# ipykernel_launcher without the debugger, whose import is half of a kernel's start, with fewer searches for garbage,
# which take a sixth of the import of torch and transformers, and without scikit-learn and SciPy where transformers
# imports them for assisted decoding and object detection, which nothing here uses: a third of its import.
_KERNEL = """
import gc, sys, types; gc.set_threshold(100_000, 50, 100)
sys.modules["debugpy"] = None
unused = {"generation.candidate_generator": "sklearn", "loss.loss_for_object_detection": "scipy"}
def find_spec(name, *_):
    if package := unused.get(name.removeprefix("transformers.")):
        setattr(sys.modules["transformers.utils"], f"is_{package}_available", bool)
sys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))
import ipykernel.kernelapp; ipykernel.kernelapp.launch_new_instance()
"""


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], *, profile: str, threads: int = 1) -> None:
    """Execute ``notebook`` and write the copy to ``output``; a failed one is kept in ``runs/<profile>/failed/``."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # its warning of an unknown parameter; ours is an error
    if not notebook.is_file():
        raise UserError(f"{paths.relative(notebook)}: no such notebook")
    refuse_secrets(parameters)  # papermill writes them into the copy
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for name, value in COMPUTING.items():
        os.environ.setdefault(name, value)
    _choose_gpu()
    _end_with_run()
    run, stage = paths.profile_run(profile).resolve(), output.resolve().parent
    name = "-".join(stage.relative_to(run).parts if stage.is_relative_to(run) else stage.parts[-2:])
    copy = paths.profile_run(profile) / "failed" / f"{name}.ipynb"
    partial = in_progress(output)
    copy.unlink(missing_ok=True)
    for file in (copy, partial):
        file.parent.mkdir(parents=True, exist_ok=True)
    short = tempfile.gettempdir()
    short = short if len(os.fsencode(short)) < 70 else "/tmp"  # a socket's address has some 100 bytes
    try:
        with tempfile.TemporaryDirectory(prefix="polydetox-", dir=short) as folder:
            papermill.execute_notebook(
                str(notebook), str(partial), dict(parameters), cwd=str(paths.root()), progress_bar=False,
                start_timeout=_START_SECONDS, kernel_name="python3", kernel_manager_class=_own_kernel(folder),
            )  # fmt: skip
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        reason = "DeadKernelError: the kernel died, often for want of memory"
    except (PapermillException, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        os.replace(partial, output)
        return
    if partial.is_file():
        os.replace(partial, copy)
    reason = re.sub(r"\x1b\[[0-9;]*m", "", reason).strip().splitlines()[0]
    raise UserError(f"{reason}\n  the partially executed notebook: {paths.relative(copy)}")


def _submitted() -> bool:
    """Whether this stage is a Slurm job of its own, and not in the one that its run was started in."""
    return os.environ.get("SLURM_JOB_ID", "") not in ("", os.environ.get(RUN, "").rpartition(":")[2])


def _choose_gpu() -> None:
    """One GPU a stage, since on several Trainer would multiply the batch; a Slurm job has what Slurm gave it."""
    if not _submitted():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    elif not (os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _own_kernel(folder: str) -> type:
    """The class that starts this Python's ipykernel, whatever kernels are installed under its name.

    It listens on sockets in ``folder``, since jobs that start side by side now and then choose the same TCP port.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, "-P", "-c", _KERNEL, "-f", "{connection_file}"])

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, transport="ipc", connection_file=f"{folder}/kernel.json")

    return OwnKernel


def _end_with_run() -> None:
    """End this stage, and with it its kernel, once the run that started it is gone."""
    host, pid = f"{os.environ.get(RUN, '')}::".split(":")[:2]
    if host != socket.gethostname() or not pid.isdigit() or _submitted():  # none, or Slurm is its keeper
        return

    def watch() -> None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(int(pid)).wait()
        os.kill(os.getpid(), signal.SIGINT)  # lets papermill shut its kernel down
        time.sleep(10.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def opened(job: Path, folder: Path | None = None) -> Path:
    """Write the notebook of a job (its folder, a file in it, or a failed copy) with its parameters; returns the path.

    What the notebook writes goes beside the copy, by default below ``runs/manual/``, never over a run's artefacts.
    """
    import nbformat
    from papermill import execute_notebook

    failed = job.suffix == ".ipynb" and job.stem != "notebook"
    stage = job if job.is_dir() or failed else job.parent
    executed = job if failed else stage / "notebook.ipynb"
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
    name = stage.with_suffix("") if failed else stage
    below = name.relative_to(paths.runs()) if name.is_relative_to(paths.runs()) else name.name
    folder = folder or paths.runs() / "manual" / below
    if "output_folder" in parameters:
        parameters["output_folder"] = str(folder)
    parameters.pop("parts", None)  # a folder of the run, whose shards of other settings would be removed
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
