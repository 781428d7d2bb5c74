"""What is installed: the pinned sets, the extras of pyproject.toml and environment.yml say the same."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from polydetox import __version__
from tiny import CHECKOUT

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
# What each set holds besides the dependencies.
SETS = {
    "requirements.txt": ["offline", "slurm", "dev"],
    "requirements-gpu.txt": ["offline", "slurm", "dev", "gpu"],
}
# The machines and Pythons that README names, as markers see them.
MACHINES = [
    {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
]
PYTHONS = ["3.11", "3.12", "3.13"]


def pinned(name: str, python: str = "3.11", machine: dict[str, str] = MACHINES[0]) -> dict[str, str]:
    """Package -> version, as pip would install the set there; a package has one line that applies."""
    environment = machine | {
        "python_version": python, "python_full_version": f"{python}.9", "extra": "",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    found: dict[str, str] = {}
    for line in (CHECKOUT / name).read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and not requirement.extras, line
        assert requirement.name not in found, f"{name} pins {requirement.name} twice on Python {python}"
        found[requirement.name] = specifier.version
    return found


def applies(requirement: Requirement, machine: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(machine)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine["sys_platform"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", SETS)
def test_each_set_pins_all_that_is_declared(name, python, machine):
    pins = pinned(name, python, machine)
    declared = NEEDED + [requirement for extra in SETS[name] for requirement in EXTRAS[extra]]
    for requirement in declared:
        if applies(requirement, machine):
            version = pins.get(canonicalize_name(requirement.name))
            assert version, f"{name} lacks {requirement.name}: make requirements"
            assert requirement.specifier.contains(version), f"{name}: {requirement.name}=={version}, not {requirement}"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_gpus_set_is_the_other_one_and_more(python):
    """So a result of either is made with the same versions, and the second can be installed over the first."""
    small, large = (pinned(name, python) for name in SETS)
    assert {name: large.get(name) for name in small} == small
    assert {"vllm", "bitsandbytes", "sentencepiece", "protobuf"} <= large.keys() - small.keys()


def test_the_plain_set_holds_nothing_of_cuda():
    """torch's CPU build needs none of it, and a build that does brings its own."""
    cuda = re.compile(r"nvidia-|cuda-|triton|vllm|bitsandbytes")
    assert not [name for name in pinned("requirements.txt") if cuda.match(name)]
    assert [name for name in pinned("requirements-gpu.txt") if cuda.match(name)]


def test_environment_yml_names_what_is_pinned():
    environment = yaml.safe_load((CHECKOUT / "environment.yml").read_text())
    packages = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.txt", "-e ."]
    assert {"pip", "make", "c-compiler"} <= set(packages)
    versions = dict(entry.split("=") for entry in packages if "=" in entry)
    makefile = (CHECKOUT / "Makefile").read_text()
    assert re.findall(r"^PYTHON +\?= python(\S+)", makefile, re.MULTILINE) == [versions["python"]]
    assert re.findall(r"--python-version (\S+)", makefile) == [versions["python"]]
    assert PROJECT["requires-python"] == f">={versions['python']}"
    # conda's `quarto=1.9` is any 1.9.*; the extra's release is one of them.
    (quarto,) = EXTRAS["quarto"]
    (specifier,) = quarto.specifier
    assert specifier.operator == "==" and f"{specifier.version}.".startswith(f"{versions['quarto']}.")


# What uv says where no registry answers, or it cannot be asked.
_UNREACHED = re.compile(r"Failed to fetch|error sending request|timed out|the network was disabled", re.IGNORECASE)


@pytest.fixture
def uv(monkeypatch) -> str:
    """The resolver; it does not wait long for a registry that does not answer."""
    for name, value in {"UV_HTTP_CONNECT_TIMEOUT": "5", "UV_HTTP_TIMEOUT": "20", "UV_HTTP_RETRIES": "1"}.items():
        monkeypatch.setenv(name, value)
    program = Path(sys.executable).parent / "uv"
    if not program.is_file():
        pytest.skip("uv is not installed beside this Python (the extra dev)")
    return str(program)


def resolve(command: list[str], folder: Path) -> None:
    """Run what asks a registry: skipped where none is reached, failed where one answers and there is no solution."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    unreached = [line.strip() for line in done.stderr.splitlines() if _UNREACHED.search(line)]
    if done.returncode and unreached:
        pytest.skip(f"no package registry is reached: {unreached[0]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_extra_resolves(uv, tmp_path):
    """All of them together, at today's releases, for every Python and machine."""
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    command = [uv, "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11", "--all-extras"]
    resolve([*command, "--quiet", "--output-file", "all.txt"], tmp_path)
    resolved = (tmp_path / "all.txt").read_text()
    for requirement in NEEDED + [requirement for extra in EXTRAS.values() for requirement in extra]:
        assert re.search(rf"^{re.escape(canonicalize_name(requirement.name))}==", resolved, re.MULTILINE), requirement


@pytest.mark.slow
def test_the_sets_are_what_make_requirements_writes(uv, tmp_path):
    """The documented command leaves them as they are; after a change of pyproject.toml it would not."""
    for name in ("pyproject.toml", "Makefile", *SETS):
        shutil.copy(CHECKOUT / name, tmp_path)
    # `-o`: the environment is there, only not in this folder.
    resolve(["make", "-o", ".venv/.made", "CONDA=", f"BIN={Path(uv).parent}", "requirements"], tmp_path)
    for name in SETS:
        assert (tmp_path / name).read_text() == (CHECKOUT / name).read_text(), f"{name} is stale: make requirements"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"].startswith(PROJECT["name"])
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    (author,) = citation["authors"]
    assert author["name"] in (CHECKOUT / "LICENSE").read_text("utf-8")
    readme = (CHECKOUT / "README.md").read_text("utf-8")
    for paper in citation["references"]:
        assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in readme
        assert all({"family-names", "given-names"} == set(author) for author in paper["authors"])
    assert f"## {__version__}\n" in (CHECKOUT / "CHANGELOG.md").read_text("utf-8")


def test_continuous_integration_runs_the_projects_own_command():
    workflow = yaml.safe_load((CHECKOUT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": "bash .ci/run"} and (CHECKOUT / ".ci/run").is_file()
    assert {"python-version": "3.11"} in [step.get("with") for step in steps]
