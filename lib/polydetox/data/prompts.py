"""Evaluation prompts, and the prompts written for this project."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core import paths
from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, check_language, rtp_lx_locales
from polydetox.core.parameters import PROMPT_SOURCES
from polydetox.core.yaml_files import read_yaml
from polydetox.data import corpora
from polydetox.data.catalogue import check_named, is_available, local_path
from polydetox.data.rows import Skipped, is_blank
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_id, rtp_lx_rows
from polydetox.data.schemas import SCHEMAS


def load_prompts(
    source: str, language: str, folder: str | Path = "", limit: int | None = None
) -> tuple[pd.DataFrame, Skipped]:
    """Load the evaluation prompts of one language.

    Returns the table (columns ``prompt_id``, ``prompt``, ``gloss``; a row a prompt, ids unique) and what was skipped:
    rows that hold no prompt, and malformed ones. ``gloss`` is the English text where the source has a parallel one.

    ``source`` is ``project`` (``params/prompts/evaluation.yaml``), ``rtp-lx`` (a folder of ``RTP_LX_<LOCALE>.json``,
    ordered by the field ``Index``), ``real-toxicity-prompts`` or ``toxigen`` (English alone), or
    ``polyglo-toxicity-prompts`` (a folder of their files, in the order of the files).
    """
    check_language(language)
    if source == "project":
        table, skipped = project_prompts(language), Skipped()
    elif source == "rtp-lx":
        rows, skipped = rtp_lx_rows(folder, language)
        usable = [row for row in rows if not is_blank(row["Prompt"])]
        skipped.blank = len(rows) - len(usable)
        table = pd.DataFrame(
            {"prompt_id": [rtp_lx_id(row) for row in usable], "prompt": [row["Prompt"].rstrip() for row in usable]}
        )
    elif source in PROMPT_SOURCES:
        read, skipped = _corpus_prompts(source, language, folder)
        table = read[["prompt_id", "prompt"]]
        if table["prompt_id"].duplicated().any():
            raise UserError(f"{local_path(folder)}: has files of the same name with prompts in {LANGUAGES[language]}; "
                            "name the folder of one part")  # fmt: skip
    else:
        raise UserError(f"prompts source {source!r}: use one of {', '.join(map(repr, PROMPT_SOURCES))}")
    if source != "project":
        table = table.assign(gloss=table["prompt"] if language == "en" else None)
    if limit is not None:
        table = table.head(limit)
    if table.empty:
        file = paths.relative(prompt_file(source, language, folder))
        raise UserError(f"{file}: no prompts in {LANGUAGES[language]} ({language}), {skipped}")
    return table.reset_index(drop=True), skipped


def further_prompts(sets: list[dict[str, Any]]) -> list[str]:
    """The prompts of further sets (``source, folder, limit, languages`` of each), all languages together."""
    return [
        prompt
        for each in sets
        for language in each["languages"]
        for prompt in load_prompts(each["source"], language, each["folder"], each["limit"])[0]["prompt"]
    ]


def prompt_file(source: str, language: str, folder: str | Path = "") -> Path:
    """The file that the evaluation prompts of one language come from, or the folder, where all languages share it."""
    if source == "project":
        return paths.prompt_files() / "evaluation.yaml"
    return rtp_lx_file(folder, language) if source == "rtp-lx" else local_path(folder)


def _corpus_prompts(source: str, language: str, folder: str | Path) -> tuple[pd.DataFrame, Skipped]:
    check_named(folder, source)
    if source != "polyglo-toxicity-prompts" and language != "en":
        raise DataNotFound(
            f"{SCHEMAS[source].title} is English alone: no prompts in {LANGUAGES[language]} ({language})"
        )
    place = local_path(folder)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    table, skipped = _read_corpus(source, language, str(folder), tuple(corpora.version(file) for file in files))
    return table, skipped + Skipped()


@lru_cache(maxsize=32)
def _read_corpus(
    source: str, language: str, folder: str, files: tuple[tuple[Path, int, int], ...]
) -> tuple[pd.DataFrame, Skipped]:
    """The prompts of one language in a folder as its files are: the checks before a run ask for them several times."""
    if source == "polyglo-toxicity-prompts":
        return corpora.polyglo_toxicity_prompts(folder, language)
    return corpora.toxigen_prompts(folder) if source == "toxigen" else corpora.real_toxicity_prompts(folder)


def languages_available(source: str, languages: list[str], folder: str | Path = "") -> list[str]:
    """Those of some languages that a source of evaluation prompts has here; none where it is not available.

    A file that cannot be read is a ``UserError`` that names it.
    """
    if source == "project":
        return list(languages)
    if not is_available(folder) or not local_path(folder).is_dir():
        return []
    if source != "rtp-lx":
        return [language for language in languages if _has_prompts(source, language, folder)]
    found = {path.name.lower() for path in local_path(folder).glob("*.json")}
    return [language for language in languages
            if any(f"rtp_lx_{locale}.json".lower() in found for locale in rtp_lx_locales(language))]  # fmt: skip


def _has_prompts(source: str, language: str, folder: str | Path) -> bool:
    try:
        return bool(len(_corpus_prompts(source, language, folder)[0]))
    except DataNotFound:
        return False


def project_prompts(language: str) -> pd.DataFrame:
    """The multiway parallel prompts written for this project, in one language."""
    file = paths.prompt_files() / "evaluation.yaml"
    rows = _prompt_rows(file, language)
    english = _prompt_rows(file, "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values()), "gloss": list(english.values())})


def training_prompts() -> pd.DataFrame:
    """The English prompts from which on-policy preference pairs are sampled."""
    rows = _prompt_rows(paths.prompt_files() / "training.yaml", "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values())})


def neutral_prompts() -> pd.DataFrame:
    """English prompts that provoke nothing, on which the sources of toxicity are switched on."""
    rows = _prompt_rows(paths.prompt_files() / "neutral.yaml", "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values())})


def _prompt_rows(file: Path, language: str) -> dict[str, str]:
    entries = read_yaml(file)
    if not isinstance(entries, list):
        raise UserError(f"{paths.relative(file)}: expected a list of prompts, each with 'name' and its languages")
    rows: dict[str, str] = {}
    for position, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "name" not in entry:
            raise UserError(f"{paths.relative(file)}: prompt {position} has no 'name'")
        if is_blank(entry.get(language)):
            raise UserError(f"{paths.relative(file)}: prompt {entry['name']!r} has no text under {language!r}")
        if entry["name"] in rows:
            raise UserError(f"{paths.relative(file)}: name {entry['name']!r} is used twice; give each prompt its own")
        rows[str(entry["name"])] = entry[language].rstrip()
    return rows
