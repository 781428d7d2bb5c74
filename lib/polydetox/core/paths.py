"""Every path of the project, in one place."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from polydetox.core.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name, where a folder could stand as well

# What no model and no profile is called: the other folders in that of a run, and in that of all runs.
TAKEN = {"model": ("book", "failed", "first", "logs", "site", "summary", "world"),
         "profile": ("cache", "checkpoints", "manual")}  # fmt: skip


def expanded(text: str | Path) -> Path:
    """The absolute path of one with ``~`` or a ``$VARIABLE`` at its start; further on, a dollar sign is a name's."""
    first, *rest = str(text).split(os.sep, 1)
    try:
        return Path(os.sep.join([os.path.expandvars(first), *rest])).expanduser().absolute()
    except RuntimeError:  # no such user, or no home
        raise UserError(f"{str(text)!r}: there is no such home folder; write the path out") from None


def given(text: str | Path) -> Path:
    """A file or folder that a notebook is given: from the working directory, or else from the project's root."""
    path = expanded(text)
    return path if path.exists() or path != Path(text).absolute() else root() / text


def _is_root(folder: Path) -> bool:
    return (folder / "params").is_dir() and (folder / "notebooks").is_dir()


@cache
def root() -> Path:
    """The folder that holds ``params/`` and ``notebooks/``: ``$POLYDETOX_ROOT``, else the first such folder at or above
    the working directory, else the checkout that this package was installed from.
    """
    if named := os.environ.get("POLYDETOX_ROOT"):
        if not _is_root(expanded(named)):
            raise UserError(f"POLYDETOX_ROOT={named}: no params/ and notebooks/ there; set it to the checkout")
        return expanded(named).resolve()
    for folder in [Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parents[3]]:
        if _is_root(folder):
            return folder.resolve()
    raise UserError("not inside a polydetox checkout (no params/ and notebooks/): change to it, or set POLYDETOX_ROOT")


def runs() -> Path:
    """All artefacts: ``$POLYDETOX_RUNS`` if set, else ``runs/`` under the root."""
    named = os.environ.get("POLYDETOX_RUNS")
    folder = expanded(named).resolve() if named else root() / "runs"
    if re.search(r"[{}\x00-\x1f\x7f]", str(folder) if named else ""):
        raise UserError(
            f"POLYDETOX_RUNS={named!r}: a brace or a control character, which Snakemake cannot have in a path; name "
            "another folder"
        )
    return folder


def prompt_files() -> Path:
    """The prompts written for this project, as YAML."""
    return root() / "params" / "prompts"


def notebooks() -> Path:
    """The stage and summary notebooks, without outputs."""
    return root() / "notebooks"


def profile_run(profile: str) -> Path:
    """The artefacts of one profile."""
    return runs() / profile


def checkpoint(model: str) -> Path:
    """The base checkpoint of a model that had to be converted; shared by all profiles."""
    return runs() / "checkpoints" / model


def score_cache() -> Path:
    """The cached scores, a file a process; shared by all profiles."""
    return runs() / "cache" / "scores"


def site(profile: str) -> Path:
    """The rendered site of a profile."""
    return profile_run(profile) / "site"


def relative(path: str | Path) -> str:
    """A path as a person should read it: below the root without its prefix, else as it is."""
    # As it is written first: what a link such as runs/ leads to lies elsewhere.
    for place in (Path(os.path.abspath(path)), Path(path).resolve()):
        if place.is_relative_to(root()):
            return str(place.relative_to(root()))
    return str(path)
