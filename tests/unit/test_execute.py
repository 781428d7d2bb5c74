"""Running one notebook: where it ends up when it succeeds, and what is said when it does not."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from polydetox import execute
from polydetox.cli import main
from polydetox.core import paths
from polydetox.core.errors import UserError


@pytest.fixture(autouse=True)
def no_run(monkeypatch):
    monkeypatch.delenv(execute.RUN, raising=False)


def write_notebook(file, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, file)
    return file


def test_success_writes_the_executed_copy(checkout, tmp_path):
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "print(n + 1)")
    output = paths.profile_run("tiny") / "stage" / "notebook.ipynb"
    execute.execute(source, output, {"n": 4}, profile="tiny")
    executed = nbformat.read(output, as_version=4)
    assert "5" in executed.cells[-1].outputs[0]["text"]
    assert [path.name for path in output.parent.iterdir()] == ["notebook.ipynb"]


def test_failure_keeps_the_partial_copy_and_names_the_last_error(checkout, tmp_path):
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "print('before')", "raise ValueError('the reason')")
    output = paths.profile_run("tiny") / "m" / "stage" / "notebook.ipynb"
    with pytest.raises(UserError) as raised:
        execute.execute(source, output, {}, profile="tiny")
    assert "ValueError: the reason" in str(raised.value)
    assert str(raised.value).endswith("runs/tiny/failed/m-stage.ipynb")
    copy = nbformat.read((paths.profile_run("tiny") / "failed") / "m-stage.ipynb", as_version=4)
    assert any("before" in str(cell.get("outputs")) for cell in copy.cells)
    assert not output.exists()

    # Once mended, the failed copy goes.
    write_notebook(tmp_path / "n.ipynb", "n = 1")
    execute.execute(source, output, {}, profile="tiny")
    assert output.exists() and not list((paths.profile_run("tiny") / "failed").iterdir())


def test_a_kernel_that_dies_is_a_failure(checkout, tmp_path):
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "import os; os._exit(3)")
    with pytest.raises(UserError, match="DeadKernelError"):
        execute.execute(source, paths.profile_run("tiny") / "s" / "notebook.ipynb", {}, profile="tiny")


def test_the_kernel_is_this_pythons_whatever_is_installed_under_its_name(checkout, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter/kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "other", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "import sys; print(sys.executable)")
    output = paths.profile_run("tiny") / "s" / "notebook.ipynb"
    execute.execute(source, output, {}, profile="tiny", threads=3)
    assert nbformat.read(output, as_version=4).cells[-1].outputs[0]["text"].strip() == sys.executable


def test_a_kernel_imports_transformers_without_packages_that_it_can_import(checkout, tmp_path):
    code = "from transformers import GenerationMixin, Trainer; import sys; print({'sklearn', 'scipy'} & {*sys.modules})"
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", code, "from sklearn.metrics import roc_curve; print(1)")
    output = paths.profile_run("tiny") / "s" / "notebook.ipynb"
    execute.execute(source, output, {}, profile="tiny")
    assert [cell.outputs[-1]["text"] for cell in nbformat.read(output, as_version=4).cells[-2:]] == ["set()\n", "1\n"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_kernel_keeps_large_blocks_for_the_next_tensor(checkout, tmp_path):
    faults = "resource.getrusage(resource.RUSAGE_SELF).ru_minflt"
    again = f"before = {faults}\nfor _ in range(8): b'x' * 2**26\nprint({faults} - before)"
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "import resource; len(b'x' * 2**26)", again)
    output = paths.profile_run("tiny") / "s" / "notebook.ipynb"
    execute.execute(source, output, {}, profile="tiny")
    printed = nbformat.read(output, as_version=4).cells[-1].outputs[0]["text"]
    assert int(printed) < 2**26 // resource.getpagesize(), "pages for less than one of the eight blocks"


def test_threads_of_a_kernel_sleep_while_they_wait_unless_asked_otherwise(checkout, tmp_path, monkeypatch):
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "import os; print(os.environ['OMP_WAIT_POLICY'])")
    output = paths.profile_run("tiny") / "s" / "notebook.ipynb"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # put back as it was afterwards

    def seen() -> str:
        execute.execute(source, output, {}, profile="tiny")
        return nbformat.read(output, as_version=4).cells[-1].outputs[0]["text"].strip()

    assert seen() == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert seen() == "passive"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kernel_ends_with_its_job(checkout, tmp_path, number):
    own = tmp_path / "process"
    source = write_notebook(
        tmp_path / "n.ipynb", "n = 1",
        f"import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(own) + '.part'!r}, 'w').write(str(os.getpid()))\nos.rename({str(own) + '.part'!r}, {str(own)!r})\n"
        "time.sleep(60)",
    )  # fmt: skip
    output = paths.profile_run("tiny") / "s" / "notebook.ipynb"
    job = subprocess.Popen([sys.executable, "-m", "polydetox", "execute", str(source), str(output), "--profile=tiny"],
                           stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 30
    while not own.exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    job.send_signal(number)
    assert job.wait(20) not in (0, None) and not output.exists()
    kernel = int(own.read_text())
    deadline = time.monotonic() + 5
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the kernel outlives its job"
        time.sleep(0.05)


def test_a_job_is_opened_with_its_parameters(checkout, tmp_path, monkeypatch, capsys):
    declared = "n = 1\nparts = ''\noutput_folder = ''"
    source = write_notebook(tmp_path / "stage.ipynb", declared, "import os; print(n, os.getcwd())")
    job = paths.profile_run("tiny") / "m" / "stage"
    given = {"n": 4, "output_folder": str(job), "parts": str(job.with_name("parts"))}
    execute.execute(source, job / "notebook.ipynb", given, profile="tiny")
    ran = (job / "notebook.ipynb").read_bytes()
    write_notebook(source, declared, "print('mended')")
    assert main(["open", str(job), "--no-start"]) == 0
    copy = paths.runs() / "manual/tiny/m/stage/stage.ipynb"
    assert capsys.readouterr().out == "the notebook: runs/manual/tiny/m/stage/stage.ipynb\n"
    cells = nbformat.read(copy, as_version=4).cells
    assert [cell.metadata.get("tags") for cell in cells[1:3]] == [["parameters"], ["injected-parameters"]]
    assert "n = 4" in cells[2].source and str(copy.parent) in cells[2].source and "mended" in cells[3].source
    assert "parts" not in cells[2].source, "which are the run's"
    assert not any(cell.outputs for cell in cells) and (job / "notebook.ipynb").read_bytes() == ran

    write_notebook(source, declared, "1 / 0")
    with pytest.raises(UserError):
        execute.execute(source, job / "notebook.ipynb", given, profile="tiny")
    failed = execute.opened((paths.profile_run("tiny") / "failed") / "m-stage.ipynb", tmp_path / "here")
    assert failed == tmp_path / "here/stage.ipynb" and "n = 4" in failed.read_text()

    assert main(["open", str(job.parent), "--no-start"]) == 2 and main(["open", str(source), "--no-start"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["open", str(job)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "no such notebook; name the folder of a job that has run" in lines[0]
    assert "not executed by papermill" in lines[1] and "pip install jupyterlab" in lines[2]


def test_command_line_errors_are_one_line(checkout, capsys):
    assert main(["execute", "notebooks/none.ipynb", "out.ipynb"]) == 2
    assert main(["execute", "notebooks/evaluation/generate.ipynb", "out.ipynb", "--parameters", "{"]) == 2
    assert main(["run", "--profile", "tny"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "no such notebook" in lines[0] and "not valid JSON" in lines[1] and "did you mean 'tiny'" in lines[2]


def test_a_stage_ends_with_the_run_that_started_it(checkout, tmp_path):
    """A run that is killed without a chance to clean up leaves no stage behind."""
    source = write_notebook(tmp_path / "n.ipynb", "n = 1", "import time; time.sleep(60)")
    run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stage = subprocess.Popen(
        [sys.executable, "-m", "polydetox", "execute", str(source), str(tmp_path / "o" / "notebook.ipynb"),
         "--profile", "tiny"],
        env=os.environ | {execute.RUN: f"{socket.gethostname()}:{run.pid}:"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(4)
    assert stage.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    stage.communicate(timeout=25)
    assert stage.returncode not in (0, None)
    assert not (tmp_path / "o" / "notebook.ipynb").exists()


def test_data_lists_sources_with_licence(checkout, capsys):
    assert main(["data"]) == 0
    assert "rtp-lx" in (text := capsys.readouterr().out) and "licence:" in text


def test_a_secret_is_refused_before_a_copy_holds_it(checkout, tmp_path):
    notebook = checkout / "notebooks/evaluation/score.ipynb"
    with pytest.raises(UserError, match="parameter 'hf_token' looks like a secret"):
        execute.execute(notebook, tmp_path / "o/n.ipynb", {"hf_token": "abc"}, profile="tiny")
    assert not list(tmp_path.rglob("*.ipynb"))
