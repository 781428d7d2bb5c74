"""What of the data sources is available, read whole: ``polydetox data check``."""

from __future__ import annotations

import contextlib
from pathlib import Path

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, known_locale
from polydetox.data import corpora
from polydetox.data.catalogue import fetched_folder, source, where
from polydetox.data.fetching import changed
from polydetox.data.labelled import read_labelled
from polydetox.data.pairs import toxicity_pairwise
from polydetox.data.parallel import parallel_sentences
from polydetox.data.prompts import load_prompts, project_prompts, training_prompts
from polydetox.data.rows import Skipped
from polydetox.data.rtp_lx import rtp_lx_file


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
    return _READERS[name](folder)


def _check_rtp_lx(folder: Path) -> str:
    said = []
    for language in LANGUAGES:
        try:
            rtp_lx_file(folder, language)
        except UserError:
            continue
        prompts, skipped = load_prompts("rtp-lx", language, folder)
        said.append(f"{language} {len(prompts)}{_less(skipped)}")
    if not said:
        raise UserError(f"{folder}: no RTP_LX_<LOCALE>.json of any of the languages {' '.join(LANGUAGES)}")
    named = [path.stem[7:] for path in sorted(folder.glob("RTP_LX_*.json"))]
    others = [locale for locale in named if known_locale(locale) != locale]
    return f"prompts: {', '.join(said)}" + (f"; known but not supported: {' '.join(others)}" if others else "")


def _less(skipped: Skipped) -> str:
    """What was skipped, in few words."""
    numbers = ((skipped.blank, "blank"), (skipped.repeated, "repeated"), (len(skipped.rejected), "malformed"))
    said = [f"{number} {what}" for number, what in numbers if number]
    return f" ({', '.join(said)})" if said else ""


def _check_pairwise(folder: Path) -> str:
    pairs, skipped = toxicity_pairwise(folder)
    return f"{len(pairs):,} pairs{_less(skipped)}"


def _check_jigsaw(folder: Path) -> str:
    table, skipped = read_labelled(folder if folder.is_file() else folder / "train.csv", 0.5)
    return f"{len(table):,} comments, {table['label'].mean():.1%} of them toxic{_less(skipped)}"


def _check_parallel(folder: Path) -> str:
    lengths = {language: len(parallel_sentences("folder", language, folder)) for language in LANGUAGES}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder}: the files are not parallel, line by line ({lengths})")
    return f"{lengths['en']} sentences in {len(lengths)} languages"


def _check_real_toxicity(folder: Path) -> str:
    table, skipped = corpora.real_toxicity_prompts(folder)
    return f"{len(table):,} prompts, {(table['toxicity'] >= 0.5).mean():.1%} of them toxic{_less(skipped)}"


def _check_polyglo(folder: Path) -> str:
    said = []
    for language in LANGUAGES:
        try:
            table, skipped = corpora.polyglo_toxicity_prompts(folder, language)
        except DataNotFound:
            continue
        said.append(f"{language} {len(table):,}{_less(skipped)}")
    if not said:
        corpora.polyglo_toxicity_prompts(folder, "en")  # says why not
    return f"prompts: {', '.join(said)}"


def _check_toxigen(folder: Path) -> str:
    said = []
    with contextlib.suppress(DataNotFound):  # the lists of prompts alone
        table, skipped = corpora.toxigen(folder)
        said.append(f"{len(table):,} statements, {table['toxic'].mean():.1%} of them toxic{_less(skipped)}")
    with contextlib.suppress(DataNotFound):  # the annotated part alone
        prompts, skipped = corpora.toxigen_prompts(folder)
        said.append(f"{len(prompts):,} toxic prompts{_less(skipped)}")
    if not said:
        corpora.toxigen_prompts(folder)  # says why not
    return "; ".join(said)


def _check_wikitext(folder: Path) -> str:
    table, skipped = corpora.wikitext(folder)
    return f"{len(table):,} paragraphs to train on{_less(Skipped(rejected=skipped.rejected))}"


_READERS = {
    "rtp-lx": _check_rtp_lx, "toxicity-pairwise": _check_pairwise, "jigsaw": _check_jigsaw,
    "parallel-prompts": _check_parallel, "udhr": _check_parallel, "real-toxicity-prompts": _check_real_toxicity,
    "polyglo-toxicity-prompts": _check_polyglo, "toxigen": _check_toxigen, "wikitext-2": _check_wikitext,
    "wikitext-103": _check_wikitext,
}  # fmt: skip
