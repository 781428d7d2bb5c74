"""Run one notebook with papermill, the way the workflow runs each stage.

What papermill leaves open is settled here: the kernel, which is this Python's own and ends with this process, where a
failed copy goes, that the executed notebook appears under its final name only once the stage has succeeded, and that a
stage ends when the run that started it is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import write_json
from polydetox.core.errors import UserError

# Set by `polydetox run` to `host:process:Slurm job`, so that a stage does not outlive a run that was killed. The job is
# the one that the run itself is in, usually none.
RUN = "POLYDETOX_RUN"
# A kernel on a cold or shared file system may take minutes; one that dies is noticed at once. papermill gives 60.
_START_SECONDS = 600
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# ipykernel_launcher without the debugger, whose import is half of a kernel's start.
_KERNEL = "import sys; sys.modules['debugpy'] = None; import ipykernel.kernelapp as app; app.launch_new_instance()"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], *, profile: str, threads: int = 1) -> None:
    """Execute ``notebook`` and write the executed copy to ``output``.

    A failure is a ``UserError`` with the notebook's last error and the path of the partially executed copy, which is
    kept under ``runs/<profile>/failed/``.
    """
    # Arrow's Hadoop file system, for which papermill looks, is a third of its import and serves no local notebook.
    hidden = sys.modules.setdefault("pyarrow.fs", None) is None  # type: ignore[arg-type]
    import papermill

    if hidden:
        del sys.modules["pyarrow.fs"]
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillException, PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # its warning of an unknown parameter; ours is an error
    if not notebook.is_file():
        raise UserError(f"{paths.relative(notebook)}: no such notebook")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    _choose_gpu()
    _end_with_run()
    for suffix in (".ipynb", ".json"):
        failed_copy(profile, output).with_suffix(suffix).unlink(missing_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.part.ipynb")
    usual = tempfile.gettempdir()
    short = usual if len(os.fsencode(usual)) < 70 else "/tmp"  # a socket's address has some 100 bytes
    try:
        with tempfile.TemporaryDirectory(prefix="polydetox-", dir=short) as folder:
            papermill.execute_notebook(
                str(notebook), str(partial), dict(parameters), cwd=str(paths.root()), progress_bar=False,
                start_timeout=_START_SECONDS, kernel_name="python3", kernel_manager_class=_own_kernel(folder),
            )  # fmt: skip
    except PapermillExecutionError as error:
        _fail(profile, output, partial, f"{error.ename}: {_first_line(error.evalue)}")
    except DeadKernelError:
        _fail(profile, output, partial, "DeadKernelError: the kernel died, often for want of memory")
    except (PapermillException, RuntimeError) as error:
        _fail(profile, output, partial, f"{type(error).__name__}: {_first_line(str(error))}")
    os.replace(partial, output)


def stage_title(profile: str, output: Path) -> str:
    """A stage in a few words, by where it writes: ``gemma-3-270m base evaluate de``."""
    folder = Path(os.path.abspath(output.parent))
    run = paths.profile_run(profile)
    return " ".join((folder.relative_to(run) if folder.is_relative_to(run) else Path(folder.name)).parts)


@contextlib.contextmanager
def logged(log: Path | None, title: str) -> Iterator[None]:
    """Send what this process and its children print to ``log``, if given; say on the terminal how the stage ended."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = [os.dup(1), os.dup(2)]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    how = "failed"
    try:
        yield
        how = "done"
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, saved in zip((1, 2), terminal, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        print(
            f"{time.strftime('%H:%M:%S')}  {how:6} {title} ({time.time() - began:.0f} s)", file=sys.stderr, flush=True
        )


def this_run() -> str:
    """What ``RUN`` is set to."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.environ.get('SLURM_JOB_ID', '')}"


def _submitted() -> bool:
    """Whether this stage is a Slurm job of its own, and not in the one that its run was started in."""
    return os.environ.get("SLURM_JOB_ID", "") not in ("", os.environ.get(RUN, "").rpartition(":")[2])


def _choose_gpu() -> None:
    """One GPU a stage: on several, Trainer would silently multiply the batch.

    A Slurm job takes what Slurm gave it. One without a GPU sees none, even where devices are not constrained, or the
    variable came along from the shell that the job was submitted from.
    """
    if not _submitted():
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    elif not (os.environ.get("SLURM_STEP_GPUS") or os.environ.get("SLURM_JOB_GPUS")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _own_kernel(folder: str) -> type:
    """The class that starts this Python's ipykernel, whatever kernels are installed under its name.

    The kernel is killed with this process, however it ends. They talk over sockets in ``folder``: of TCP ports, jobs
    that start side by side now and then choose the same.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    command = [sys.executable, "-P", "-c", _KERNEL, "-f", "{connection_file}"]

    class OwnKernel(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, transport="ipc", connection_file=f"{folder}/kernel.json")

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            await super()._async_launch_kernel(kernel_cmd, preexec_fn=ends_with(os.getpid(), signal.SIGKILL), **options)

    return OwnKernel


def ends_with(parent: int, number: int) -> Callable[[], None]:
    """What, called in a new process, has it sent a signal when the parent dies, however it dies. Linux alone can."""
    prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def prepare() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def _first_line(text: str) -> str:
    return next((line for line in _ANSI.sub("", text).splitlines() if line.strip()), "no message")


def failed_copy(profile: str, output: Path) -> Path:
    """Where the partially executed copy of a failed stage is kept: its path below the run, in one name."""
    run = paths.profile_run(profile).resolve()
    stage = output.resolve().parent
    parts = stage.relative_to(run).parts if stage.is_relative_to(run) else stage.parts[-2:]
    return paths.failed(profile) / ("-".join(parts) + ".ipynb")


def _fail(profile: str, output: Path, partial: Path, reason: str) -> None:
    copy = failed_copy(profile, output)
    copy.parent.mkdir(parents=True, exist_ok=True)
    if partial.is_file():
        os.replace(partial, copy)
    write_json(copy.with_suffix(".json"), {"notebook": copy, "error": reason})
    raise UserError(f"{reason}\n  the partially executed notebook: {paths.relative(copy)}") from None


def _end_with_run() -> None:
    """End this stage, and with it its kernel, once the run that started it is gone."""
    host, pid = f"{os.environ.get(RUN, '')}::".split(":")[:2]
    if host != socket.gethostname() or not pid.isdigit() or _submitted():  # none, or Slurm is its keeper
        return

    def watch() -> None:
        while _alive(int(pid)):
            time.sleep(1.0)
        # SIGINT lets papermill shut its kernel down.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def read_parameters(text: str) -> dict[str, Any]:
    """Parameters as the workflow passes them: one JSON object."""
    try:
        parameters = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"--parameters: not valid JSON ({error})") from None
    if not isinstance(parameters, dict):
        raise UserError("--parameters: expected a JSON object")
    return parameters


def report_failures(profile: str, since: float = 0.0) -> list[str]:
    """One line for each stage of a profile whose last attempt failed, after ``since`` (seconds since the epoch)."""
    lines = []
    for file in sorted(paths.failed(profile).glob("*.json")):
        try:
            record = json.loads(file.read_text("utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if file.stat().st_mtime < since:
            continue
        lines.append(f"{file.stem}: {record['error']}\n  the partially executed notebook: {record['notebook']}")
    return lines
