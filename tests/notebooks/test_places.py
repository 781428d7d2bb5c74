"""Stages in folders with any name, and without a home folder to write to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from polydetox.cli import main
from polydetox.core.errors import UserError
from tiny import called, make_checkout, polydetox

ODD = 'it\'s & (b) $HOME `x` é ;#*?[a] "q" \\ ~'
ONE_STAGE = {"languages": ["en"], "trim": None, "mechanism": None, "alignment": None, "capability": None,
             "agreement": None}  # fmt: skip


def all_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_folders_of_any_name(tmp_path, tiny_checkpoints):
    """A checkout, a folder of runs and a model's folder whose names a shell would take apart."""
    weights = tmp_path / f"-{ODD} {{v2}}"
    shutil.copytree(tiny_checkpoints["llama"], weights)
    checkout = make_checkout(tmp_path / f"-{ODD} {{x}}", weights, models=[str(weights)], **ONE_STAGE)
    runs = tmp_path / f"-{ODD}"
    before = all_files(tmp_path)
    plan = polydetox(checkout, "run", "--profile", "tiny", "-n", POLYDETOX_RUNS=str(runs))
    assert plan.returncode == 0, plan.stderr
    assert "evaluate" in plan.stdout + plan.stderr, plan.stdout
    made = all_files(tmp_path) - before
    assert all(".snakemake" in path.parts for path in made), made

    (name,) = {line.split()[-1] for line in _python(checkout, "print(load('tiny').models[0])").splitlines()}
    folder = runs / "tiny" / name / "base" / "evaluate" / "en"
    done = polydetox(checkout, "run", "--profile", "tiny", str(folder / "manifest.json"), POLYDETOX_RUNS=str(runs))
    assert done.returncode == 0, done.stdout + done.stderr
    parameters = json.loads((folder / "manifest.json").read_text("utf-8"))["parameters"]
    assert parameters["bootstrap_samples"] == 50 and parameters["lang"] == "en"
    made = all_files(tmp_path) - before
    assert {path.parts[0] for path in made if ".snakemake" not in path.parts} == {runs.name}, made
    assert (runs / "checkpoints" / name / "log.txt").is_file() and (folder / "notebook.ipynb").is_file()


def _python(checkout: Path, code: str) -> str:
    program = f"from polydetox.workflow import load; {code}"
    return subprocess.run([sys.executable, "-c", program], env=os.environ | {"POLYDETOX_ROOT": str(checkout)},
                          capture_output=True, text=True, check=True).stdout  # fmt: skip


def test_names_that_cannot_be_are_refused_in_a_line_before_anything_starts(checkout, monkeypatch, capfd):
    def refusal(profile: str = "tiny") -> str:
        assert main(["run", f"--profile={profile}"]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    file = checkout / "params/profiles/tiny.yaml"
    for name in ("my profile", "it's", "-x", ".x", "a{b}"):
        shutil.copy(file, file.with_name(f"{name}.yaml"))
        assert f"params/profiles/{name}.yaml: the name of a profile has letters, digits" in refusal(name)
    shutil.copy(file, file.with_name("2024.yaml"))  # no number, though it looks like one
    plan = called(checkout, "run", "--profile", "2024", "-n")
    assert plan.returncode == 0, plan.stderr
    monkeypatch.setenv("POLYDETOX_RUNS", str(checkout / "$x"))
    assert main(["run", "--profile=2024", "-n", "--executor", "slurm"]) == 2
    assert "$ in a path, which Snakemake's plugins for clusters do not pass on" in capfd.readouterr().err
    (checkout / "params/models/tiny.yaml").rename(checkout / "params/models/my model.yaml")
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"models": ["my model"]}))
    assert "params/models/my model.yaml: the name of a model has letters" in refusal()
    for runs in ("{a}", "a\nb"):
        monkeypatch.setenv("POLYDETOX_RUNS", str(checkout / runs))
        assert "which Snakemake cannot have in a path" in refusal()
    assert not (checkout / "runs").exists()


def test_a_models_folder_gives_its_plain_characters_to_the_run(tmp_path, monkeypatch, checkout, tiny_checkpoints):
    from polydetox.core.params import load_model

    folder = tmp_path / "-R&D (it's) {v2} é"
    folder.symlink_to(tiny_checkpoints["llama"])
    named = load_model(str(folder))
    assert named.name.startswith("R-D-it-s-v2-é-") and named.title == folder.name


# --- home -------------------------------------------------------------------------------------------------------


def no_writing(monkeypatch, *folders: Path) -> None:
    """As on a read-only file system, which stops root too."""
    access = os.access

    def checked(path, mode, **words):
        below = any(Path(path).is_relative_to(folder) for folder in folders)
        return access(path, mode, **words) and not (below and mode & os.W_OK)

    monkeypatch.setattr(os, "access", checked)


@pytest.fixture
def clean(monkeypatch, tmp_path):
    from polydetox.core import home

    for name in (*home._FOLDERS, "HF_HOME", "LOGNAME"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return home


def test_a_home_that_can_be_written_to_is_left_alone(clean, checkout, monkeypatch):
    before = dict(os.environ)
    clean.provide()
    assert dict(os.environ) == before


def test_a_read_only_home_keeps_its_downloads(clean, checkout, monkeypatch, tmp_path):
    hub = tmp_path / "home/.cache/huggingface"
    hub.mkdir(parents=True)
    no_writing(monkeypatch, tmp_path / "home")
    clean.provide()
    place = checkout / "runs/cache/home"
    assert os.environ["HF_HOME"] == str(hub) and os.environ["HOME"] == str(tmp_path / "home")
    assert Path(os.environ["XDG_CACHE_HOME"]).parent == place == Path(os.environ["IPYTHONDIR"]).parent
    assert "MPLCONFIGDIR" not in os.environ


def test_only_what_cannot_be_written_to_is_replaced(clean, checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/matplotlib")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    clean.provide()
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "cache") and "IPYTHONDIR" not in os.environ
    assert os.environ["MPLCONFIGDIR"] == str(checkout / "runs/cache/home/mplconfigdir")
    assert os.environ["XDG_DATA_HOME"] == str(checkout / "runs/cache/home/xdg_data_home")


def test_where_nothing_can_be_written_to_it_is_said(clean, checkout, monkeypatch, tmp_path):
    no_writing(monkeypatch, Path("/"))
    with pytest.raises(UserError, match=r"neither the home folder nor another can be written to .*; set HOME to one"):
        clean.provide()


@pytest.mark.parametrize(
    ("variable", "words"),
    [("POLYDETOX_RUNS", ["run", "--profile", "tiny"]), ("POLYDETOX_RUNS", ["render", "--profile", "tiny"]),
     ("POLYDETOX_RUNS", ["push", "tiny", "--profile", "tiny"]), ("POLYDETOX_DATA", ["data", "fetch", "rtp-lx"])],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_to_is_said_with_the_variable(
    clean, checkout, monkeypatch, capfd, variable, words
):
    monkeypatch.setenv(variable, "/dev/null/here")
    assert main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("polydetox: /dev/null/here") and line.endswith(f"name another folder in {variable}")


def test_stages_run_without_a_home(checkout):
    target = "runs/checkpoints/tiny/manifest.json"
    done = polydetox(checkout, "run", "--profile", "tiny", target, HOME="/dev/null/home", XDG_CACHE_HOME=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout / target).is_file() and "Traceback" not in done.stderr
    plan = polydetox(checkout, "run", "--profile", "tiny", "-n", HOME="/dev/null/home", TMPDIR="/nowhere")
    assert plan.returncode == 0, plan.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes another user's place, as root can")
def test_a_user_without_a_name_or_a_home():
    code = "import getpass, os; from polydetox.core.home import provide; provide(); "
    code += "print(getpass.getuser(), os.environ['HOME'])"
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    command = ["setpriv", "--reuid", "54321", "--clear-groups", sys.executable, "-c"]
    if subprocess.run([*command, "import polydetox"], cwd="/", capture_output=True).returncode:
        pytest.skip("another user may not read this environment")
    done = subprocess.run([*command, code], env=kept | {"TMPDIR": "/tmp"}, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    user, home = done.stdout.split()
    assert user == "user-54321" and os.path.isabs(home)
