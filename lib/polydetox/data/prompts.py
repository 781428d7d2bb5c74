"""Evaluation prompts, and the prompts written for this project."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core import paths
from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, check_language
from polydetox.core.yaml_files import read_yaml
from polydetox.data import corpora
from polydetox.data.catalogue import is_available, local_path
from polydetox.data.catalogue import source as listed
from polydetox.data.rows import Skipped, is_blank
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_rows

# The reader of each data set of prompts: folder and language -> table with prompt_id and prompt, and what was skipped.
Reader = Callable[[str | Path, str], tuple[pd.DataFrame, Skipped]]
_READERS: dict[str, Reader] = {
    "rtp-lx": rtp_lx_rows,
    "polyglo-toxicity-prompts": corpora.polyglo_toxicity_prompts,
    "real-toxicity-prompts": lambda folder, _: corpora.real_toxicity_prompts(folder),
    "toxigen": lambda folder, _: corpora.toxigen_prompts(folder),
}
_ENGLISH_ALONE = ("real-toxicity-prompts", "toxigen")


def load_prompts(
    source: str, language: str, folder: str | Path = "", limit: int | None = None
) -> tuple[pd.DataFrame, Skipped]:
    """The evaluation prompts of one language, and what was skipped: ``prompt_id, prompt, gloss`` (the English text).

    ``source`` is ``project`` (``params/prompts/evaluation.yaml``) or a data set of :class:`PromptSource` in ``folder``.
    """
    check_language(language)
    if source == "project":
        table, skipped = project_prompts(language), Skipped()
    elif source not in _READERS:
        raise UserError(f"prompts source {source!r}: use one of {', '.join(map(repr, ['project', *_READERS]))}")
    elif not str(folder):
        raise UserError(
            f"prompts from {source} need their folder: set 'prompts: folder:' in the profile or -p prompts_folder "
            "(see `polydetox data`)"
        )
    elif source in _ENGLISH_ALONE and language != "en":
        raise DataNotFound(f"{listed(source).title} is English alone: no prompts in {LANGUAGES[language]} ({language})")
    else:
        read, skipped = _READERS[source](folder, language)
        table = read.loc[~read["prompt"].map(is_blank), ["prompt_id", "prompt"]]
        skipped.blank += len(read) - len(table)
        table["prompt"] = table["prompt"].str.rstrip()
        table["gloss"] = table["prompt"] if language == "en" else None
        if table["prompt_id"].duplicated().any():
            raise UserError(f"{local_path(folder)}: has files of the same name with prompts in {LANGUAGES[language]}; "
                            "name the folder of one part")  # fmt: skip
    if table.empty:
        file = paths.relative(prompt_file(source, language, folder))
        raise DataNotFound(f"{file}: no prompts in {LANGUAGES[language]} ({language}), {skipped}")
    return table.head(len(table) if limit is None else limit).reset_index(drop=True), skipped


def further_prompts(sets: list[dict[str, Any]]) -> list[str]:
    """The prompts of further sets (``source, folder, limit, languages`` of each), all languages together."""
    tables = [load_prompts(each["source"], language, each["folder"], each["limit"])[0]
              for each in sets for language in each["languages"]]  # fmt: skip
    return [prompt for table in tables for prompt in table["prompt"]]


def prompt_file(source: str, language: str, folder: str | Path = "") -> Path:
    """The file that the evaluation prompts of one language come from, or the folder, where all languages share it."""
    if source == "project":
        return paths.prompt_files() / "evaluation.yaml"
    return rtp_lx_file(folder, language) if source == "rtp-lx" else local_path(folder)


def languages_available(source: str, languages: list[str], folder: str | Path = "") -> list[str]:
    """Those of some languages that a source of evaluation prompts has here; none where it is not available."""
    if source == "project":
        return list(languages)
    if not is_available(folder) or not local_path(folder).is_dir():
        return []
    found = []
    for language in languages:
        with suppress(DataNotFound):
            if source == "rtp-lx":
                rtp_lx_file(folder, language)
            else:
                load_prompts(source, language, folder)
            found.append(language)
    return found


def project_prompts(language: str) -> pd.DataFrame:
    """The multiway parallel prompts written for this project, in one language: ``prompt_id, prompt, gloss``."""
    return _written("evaluation", language).assign(gloss=_written("evaluation", "en")["prompt"])


def training_prompts() -> pd.DataFrame:
    """The English prompts from which on-policy preference pairs are sampled: ``prompt_id, prompt``."""
    return _written("training", "en")


def neutral_prompts() -> pd.DataFrame:
    """English prompts that provoke nothing, on which the sources of toxicity are switched on: ``prompt_id, prompt``."""
    return _written("neutral", "en")


def _written(name: str, language: str) -> pd.DataFrame:
    """The prompts of ``params/prompts/<name>.yaml`` in one language."""
    file = paths.relative(paths.prompt_files() / f"{name}.yaml")
    entries = read_yaml(paths.prompt_files() / f"{name}.yaml")
    if not isinstance(entries, list):
        raise UserError(f"{file}: expected a list of prompts, each with 'name' and its languages")
    rows: dict[str, str] = {}
    for position, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "name" not in entry:
            raise UserError(f"{file}: prompt {position} has no 'name'")
        if is_blank(entry.get(language)):
            raise UserError(f"{file}: prompt {entry['name']!r} has no text under {language!r}")
        if entry["name"] in rows:
            raise UserError(f"{file}: name {entry['name']!r} is used twice; give each prompt its own")
        rows[str(entry["name"])] = entry[language].rstrip()
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values())})
