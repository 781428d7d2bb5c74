"""Finding Quarto, and getting it from PyPI: once, in bounded time, with one line where that fails."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from polydetox import quarto
from polydetox.core.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """An environment of its own without Quarto, in which pip fails, counting its starts in ``tries``."""
    monkeypatch.delenv("QUARTO", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(quarto, "_beside", lambda: str(tmp_path / "bin"))
    pip(tmp_path, monkeypatch, "print('Error downloading Quarto: no route'); print('error: build failed'); sys.exit(1)")
    return tmp_path


def pip(folder: Path, monkeypatch, then: str) -> None:
    """Let what stands for pip do ``then``."""
    code = f"import pathlib, sys, time\nopen({str(folder / 'tries')!r}, 'a').write('x')\n{then}"
    monkeypatch.setattr(quarto, "_command", lambda: [sys.executable, "-c", code])


def installing(folder: Path, script: str) -> str:
    """What leaves a command ``quarto`` in the environment."""
    command = str(folder / "bin" / "quarto")
    return f"p = pathlib.Path({command!r}); p.parent.mkdir(); p.write_text({script!r}); p.chmod(0o755)"


def tries(folder: Path) -> int:
    return len((folder / "tries").read_text()) if (folder / "tries").exists() else 0


def test_a_failed_try_is_said_in_one_line_and_not_repeated_until_asked(environment, capsys):
    said = quarto.install()
    record = environment / f"quarto-cli-{quarto.VERSION}.log"
    assert said == f"failed, see {record}. The report will be a preview; `make quarto` tries again."
    trying = f"Trying to get Quarto from PyPI (quarto-cli {quarto.VERSION}, which downloads it) ... "
    assert capsys.readouterr().out == trying
    assert quarto.install() is None and tries(environment) == 1
    assert "error: build failed" in record.read_text()
    assert quarto.install(again=True) == said and tries(environment) == 2


def test_another_version_is_tried_again(environment, monkeypatch):
    quarto.install()
    monkeypatch.setattr(quarto, "VERSION", "1.0.0")
    assert quarto.install().startswith("failed, ") and tries(environment) == 2


def test_a_preview_says_what_was_tried(environment):
    assert quarto.why_none().startswith("it is not installed; `make quarto` gets it")
    quarto.install()
    assert f"quarto-cli {quarto.VERSION} could not be installed (see `{environment}" in quarto.why_none()


def test_a_try_that_takes_too_long_is_ended(environment, monkeypatch):
    monkeypatch.setattr(quarto, "SECONDS", 1)
    pip(environment, monkeypatch, "time.sleep(60)")
    assert quarto.install().startswith("failed, ")
    assert "not done after 1 s" in (environment / f"quarto-cli-{quarto.VERSION}.log").read_text()


def test_a_quarto_that_was_installed_is_used(environment, monkeypatch, capsys):
    command = environment / "bin" / "quarto"
    pip(environment, monkeypatch, installing(environment, "#!/bin/sh\necho 1.9.38\n"))
    assert quarto.install().startswith("done.") and quarto.find_quarto() == str(command)
    assert not list(environment.glob("quarto-cli-*"))
    assert quarto.install() is None and quarto.install(again=True) is None and tries(environment) == 1
    assert quarto.version(str(command)) == "1.9.38"


def test_one_that_does_not_start_is_no_quarto(environment, monkeypatch):
    command = environment / "bin" / "quarto"
    write = (
        f"p = pathlib.Path({str(command)!r}); p.parent.mkdir(); p.write_text('#!/bin/sh\\nexit 1\\n'); p.chmod(0o755)"
    )
    pip(environment, monkeypatch, write)
    assert quarto.install().startswith("failed, ")


@pytest.mark.parametrize("value", ["", "/some/quarto"])
def test_whoever_names_a_quarto_or_none_is_not_given_another(environment, monkeypatch, value):
    monkeypatch.setenv("QUARTO", value)
    assert quarto.install() is None and tries(environment) == 0


def test_quarto_is_found_by_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("QUARTO", "")
    assert quarto.find_quarto() is None and quarto.why_none().startswith("QUARTO is set to nothing")
    monkeypatch.setenv("QUARTO", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such command"):
        quarto.find_quarto()


def test_a_folder_whose_name_quarto_cannot_have_is_rendered_through_a_link(tmp_path):
    """Real ones: `No valid input files` for ``[x]``, and no references between chapters for a backslash."""
    command = tmp_path / "quarto"
    command.write_text('#!/bin/sh\necho "<$2>"\nls "$2"\nmkdir "$2/_site"\n')
    command.chmod(0o755)
    for name in ("it's (b) #?", "[x]", "a\\b"):
        book = tmp_path / name
        book.mkdir()
        assert quarto.run_quarto(str(command), book, "html", book / "quarto.log") == book / "_site"
        assert (book / "_site").is_dir()
        given, *listed = (book / "quarto.log").read_text().splitlines()
        assert listed == ["quarto.log"]
        assert not re.search(r"[\[\]\\]", given)
        assert (given == f"<{book}>") == (name == "it's (b) #?")


def test_the_extra_names_the_same_version():
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["quarto"] == [f"quarto-cli=={quarto.VERSION}"]
    assert f"- quarto={quarto.VERSION.rsplit('.', 1)[0]} " in (CHECKOUT / "environment.yml").read_text()
