"""A made-up run, rendered once for all tests of the site."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthetic
from browser import Browser, Served, find_chromium, serve
from polydetox.core.locks import held
from synthetic import inside

LANGUAGES = ["ar", "de", "en", "ja"]
QUARTO = os.environ.get("QUARTO")


def make(folder: Path) -> Path:
    """A checkout and its runs: every stage's artefacts, and the summary notebooks, executed."""
    synthetic.make_checkout(folder / "checkout", LANGUAGES)
    with inside(folder):
        synthetic.make_run(folder / "runs", LANGUAGES)
        synthetic.run_summaries(folder / "checkout", folder / "runs")
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A checkout and its runs for the tests of this process; xdist's first process makes them, and each has a copy."""
    folder = tmp_path_factory.mktemp("synthetic") / "run"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make(folder)
    made = tmp_path_factory.getbasetemp().parent / "synthetic"
    with held(made.with_suffix(".lock")):
        if not (made / "whole").is_file():
            shutil.rmtree(made, ignore_errors=True)
            (make(made) / "whole").touch()
    shutil.copytree(made, folder, symlinks=True)
    for file in (folder / "runs").rglob("*"):
        if file.suffix in (".json", ".ipynb"):
            file.write_text(file.read_text("utf-8").replace(str(made), str(folder)), "utf-8")
    return folder


@pytest.fixture(scope="session")
def site(run_folder) -> Path:
    """The site of the made-up run, made by the preview renderer."""
    from polydetox.report.rendering import render

    with inside(run_folder):
        return render(synthetic.PROFILE).parent


@pytest.fixture
def run(run_folder) -> Iterator[Path]:
    """The folder of the made-up run, with the library's paths pointing into it for one test."""
    with inside(run_folder):
        yield run_folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A tab of a headless Chromium, in a window of 1400 by 1000 pixels."""
    command = find_chromium()
    if command is None:
        pytest.skip("no Chromium: install Debian's chromium, or set CHROMIUM to the browser's command")
    tab = Browser(command, tmp_path_factory.mktemp("chromium"))
    tab.resize(1400, 1000)
    yield tab
    tab.close()


@pytest.fixture(scope="session", params=["preview", "quarto"])
def served(request, run_folder, tmp_path_factory) -> Iterator[Served]:
    """The site of the made-up run by each renderer, on a port of this machine: Quarto's search needs a server.

    Quarto's has the PDF as well.
    """
    if request.param == "quarto":
        if not QUARTO:
            pytest.skip("no Quarto: set QUARTO to its command")
        run_folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("quarto") / "run", symlinks=True)
    else:
        folder = request.getfixturevalue("site")
    with synthetic.inside(run_folder), pytest.MonkeyPatch.context() as patch:
        from polydetox.quarto import failure_note
        from polydetox.report.rendering import render

        if request.param == "quarto":
            patch.setenv("QUARTO", QUARTO)
            folder = render(synthetic.PROFILE, pdf=True).parent
        assert failure_note(synthetic.PROFILE) is None
    with serve(folder) as address:
        yield Served(request.param, folder, address)
