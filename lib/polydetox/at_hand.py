"""What of the data sources is at hand, read whole: ``polydetox data check``."""

from __future__ import annotations

import contextlib
from pathlib import Path

from polydetox import corpora
from polydetox.data import (
    load_prompts,
    parallel_sentences,
    project_prompts,
    read_labelled,
    rtp_lx_file,
    toxicity_pairwise,
    training_prompts,
)
from polydetox.errors import NotThere, UserError
from polydetox.languages import LANGUAGES, known_locale
from polydetox.rows import LeftOut
from polydetox.sources import changed, fetched_folder, source, where


def check_source(name: str) -> str | None:
    """Read all of a data source that is at hand, and say what it holds; None where it is not at hand.

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
        prompts, left_out = load_prompts("rtp-lx", language, folder)
        said.append(f"{language} {len(prompts)}{_less(left_out)}")
    if not said:
        raise UserError(f"{folder}: no RTP_LX_<LOCALE>.json of any of the languages {' '.join(LANGUAGES)}")
    named = [path.stem[7:] for path in sorted(folder.glob("RTP_LX_*.json"))]
    others = [locale for locale in named if known_locale(locale) != locale]
    return f"prompts: {', '.join(said)}" + (f"; known but not supported: {' '.join(others)}" if others else "")


def _less(left_out: LeftOut) -> str:
    """What was left out, in few words."""
    numbers = ((left_out.blank, "blank"), (left_out.repeated, "repeated"), (len(left_out.rejected), "malformed"))
    said = [f"{number} {what}" for number, what in numbers if number]
    return f" ({', '.join(said)})" if said else ""


def _check_pairwise(folder: Path) -> str:
    pairs, left_out = toxicity_pairwise(folder)
    return f"{len(pairs):,} pairs{_less(left_out)}"


def _check_jigsaw(folder: Path) -> str:
    table, left_out = read_labelled(folder if folder.is_file() else folder / "train.csv", 0.5)
    return f"{len(table):,} comments, {table['label'].mean():.1%} of them toxic{_less(left_out)}"


def _check_parallel(folder: Path) -> str:
    lengths = {language: len(parallel_sentences("folder", language, folder)) for language in LANGUAGES}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder}: the files are not parallel, line by line ({lengths})")
    return f"{lengths['en']} sentences in {len(lengths)} languages"


def _check_real_toxicity(folder: Path) -> str:
    table, left_out = corpora.real_toxicity_prompts(folder)
    return f"{len(table):,} prompts, {(table['toxicity'] >= 0.5).mean():.1%} of them toxic{_less(left_out)}"


def _check_polyglo(folder: Path) -> str:
    said = []
    for language in LANGUAGES:
        try:
            table, left_out = corpora.polyglo_toxicity_prompts(folder, language)
        except NotThere:
            continue
        said.append(f"{language} {len(table):,}{_less(left_out)}")
    if not said:
        corpora.polyglo_toxicity_prompts(folder, "en")  # says why not
    return f"prompts: {', '.join(said)}"


def _check_toxigen(folder: Path) -> str:
    said = []
    with contextlib.suppress(NotThere):  # the lists of prompts alone
        table, left_out = corpora.toxigen(folder)
        said.append(f"{len(table):,} statements, {table['toxic'].mean():.1%} of them toxic{_less(left_out)}")
    with contextlib.suppress(NotThere):  # the annotated part alone
        prompts, left_out = corpora.toxigen_prompts(folder)
        said.append(f"{len(prompts):,} toxic prompts{_less(left_out)}")
    if not said:
        corpora.toxigen_prompts(folder)  # says why not
    return "; ".join(said)


def _check_wikitext(folder: Path) -> str:
    table, left_out = corpora.wikitext(folder)
    return f"{len(table):,} paragraphs to train on{_less(LeftOut(rejected=left_out.rejected))}"


_READERS = {
    "rtp-lx": _check_rtp_lx, "toxicity-pairwise": _check_pairwise, "jigsaw": _check_jigsaw,
    "parallel-prompts": _check_parallel, "udhr": _check_parallel, "real-toxicity-prompts": _check_real_toxicity,
    "polyglo-toxicity-prompts": _check_polyglo, "toxigen": _check_toxigen, "wikitext-2": _check_wikitext,
    "wikitext-103": _check_wikitext,
}  # fmt: skip
