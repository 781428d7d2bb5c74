"""What of the data sources is available, read whole: ``polydetox data check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, known_locale
from polydetox.data import corpora
from polydetox.data.catalogue import fetched_folder, source, where
from polydetox.data.fetching import changed
from polydetox.data.labelled import read_labelled
from polydetox.data.pairs import toxicity_pairwise
from polydetox.data.parallel import parallel_texts
from polydetox.data.prompts import load_prompts, project_prompts, training_prompts
from polydetox.data.rows import Skipped


def check_source(name: str) -> str | None:
    """Read all of a data source that is available, and say what it holds; None where it is not available.

    What is wrong with it is a ``UserError`` that names the file.
    """
    entry, folder = source(name), where(name)
    if name == "project-prompts":
        return f"{len(project_prompts('en'))} prompts in {len(LANGUAGES)} languages, {len(training_prompts())} to train"
    if folder is None:
        return None
    if folder == fetched_folder(name) and (wrong := changed(name)):
        raise UserError(f"{folder}: changed since it was fetched: {', '.join(wrong[:3])}; fetch {name} again")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {entry.variable} should name it")
    return _CHECKS[name](folder)


def _said(read: tuple[pd.DataFrame, Skipped], what: str, toxic: str = "") -> str:
    """How many rows there are, how many of them are toxic (a column of labels or scores), and what was skipped."""
    table, skipped = read
    fraction = f", {(table[toxic].astype(float) >= 0.5).mean():.1%} of them toxic" if toxic else ""
    numbers = ((skipped.blank, "blank"), (skipped.repeated, "repeated"), (len(skipped.rejected), "malformed"))
    less = ", ".join(f"{number} {why}" for number, why in numbers if number)
    return f"{len(table):,} {what}".rstrip() + fraction + (f" ({less})" if less else "")


def _whichever(*reads: Callable[[], str]) -> list[str]:
    """What is said of those parts of a data set that are there; the first one's error where none is."""
    said, missing = [], list[DataNotFound]()
    for read in reads:
        try:
            said.append(read())
        except DataNotFound as error:
            missing.append(error)
    if not said:
        raise missing[0]
    return said


def _each_language(name: str, folder: Path) -> str:
    said = _whichever(*(lambda language=language: f"{language} {_said(load_prompts(name, language, folder), '')}"
                        for language in LANGUAGES))  # fmt: skip
    others = [locale for path in sorted(folder.glob("RTP_LX_*.json"))
              if known_locale(locale := path.stem[7:]) != locale]  # fmt: skip
    return f"prompts: {', '.join(said)}" + (f"; known but not supported: {' '.join(others)}" if others else "")


def _parallel(folder: Path) -> str:
    texts = parallel_texts("folder", LANGUAGES, folder)
    return f"{len(texts['en'])} sentences in {len(texts)} languages"


def _toxigen(folder: Path) -> str:
    return "; ".join(_whichever(lambda: _said(corpora.toxigen(folder), "statements", "toxic"),
                                lambda: _said(corpora.toxigen_prompts(folder), "toxic prompts")))  # fmt: skip


def _wikitext(folder: Path) -> str:
    table, skipped = corpora.wikitext(folder)
    return _said((table, Skipped(rejected=skipped.rejected)), "paragraphs to train on")


_CHECKS: dict[str, Callable[[Path], str]] = {
    "rtp-lx": lambda folder: _each_language("rtp-lx", folder),
    "polyglo-toxicity-prompts": lambda folder: _each_language("polyglo-toxicity-prompts", folder),
    "toxicity-pairwise": lambda folder: _said(toxicity_pairwise(folder), "pairs"),
    "jigsaw": lambda folder: _said(read_labelled(folder / "train.csv"), "comments", "label"),
    "real-toxicity-prompts": lambda folder: _said(corpora.real_toxicity_prompts(folder), "prompts", "toxicity"),
    "parallel-prompts": _parallel,
    "udhr": _parallel,
    "toxigen": _toxigen,
    "wikitext-2": _wikitext,
    "wikitext-103": _wikitext,
}
