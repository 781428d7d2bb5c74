"""Evaluation prompts, and the prompts written for this project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, create_model

from polydetox.core import paths
from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, check_language
from polydetox.core.parameters import Settings
from polydetox.core.yaml_files import read_yaml
from polydetox.data import corpora
from polydetox.data.catalogue import is_available, local_path
from polydetox.data.catalogue import source as listed
from polydetox.data.rows import Row, Skipped, Text, is_blank, read_table
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
    source: str, language: str, folder: str | Path = "", limit: int | None = None, column: str = "prompt",
    strip: bool = True,
) -> tuple[pd.DataFrame, Skipped]:  # fmt: skip
    """Load the evaluation prompts of one language.

    ``source`` is ``project`` (``params/prompts/evaluation.yaml``) or another of :class:`PromptSource`, whose files are
    in ``folder``; ``own`` ones have the prompts in ``column``. With ``strip`` white space at their end is removed; else
    they are as the files have them, but for ToxiGen's, which end in a hyphen.

    Returns the table (columns ``prompt_id``, ``prompt``, ``gloss``; a row a prompt, ids unique) and what was skipped:
    rows that hold no prompt, and malformed ones. ``gloss`` is the English text where the source has a parallel one.
    """
    check_language(language)
    if source == "project":
        table, skipped = project_prompts(language), Skipped()
    elif source not in [*_READERS, "own"]:
        raise UserError(f"prompts source {source!r}: use one of {', '.join(map(repr, ['project', *_READERS, 'own']))}")
    elif not str(folder):
        raise UserError(
            f"prompts from {source} need their folder: set 'prompts: folder:' in the profile or -p prompts_folder "
            "(see `polydetox data`)"
        )
    elif source in _ENGLISH_ALONE and language != "en":
        raise DataNotFound(f"{listed(source).title} is English alone: no prompts in {LANGUAGES[language]} ({language})")
    else:
        read, skipped = own_prompts(folder, language, column) if source == "own" else _READERS[source](folder, language)
        table = read.loc[~read["prompt"].map(is_blank), ["prompt_id", "prompt"]]
        skipped.blank += len(read) - len(table)
        table["prompt"] = table["prompt"].str.rstrip() if strip else table["prompt"]
        table["gloss"] = table["prompt"] if language == "en" else None
        if table["prompt_id"].duplicated().any():
            raise UserError(f"{local_path(folder)}: has files of the same name with prompts in {LANGUAGES[language]}; "
                            "name the folder of one part")  # fmt: skip
    if table.empty:
        file = paths.relative(prompt_file(source, language, folder))
        raise DataNotFound(f"{file}: no prompts in {LANGUAGES[language]} ({language}), {skipped}")
    return table.head(len(table) if limit is None else limit).reset_index(drop=True), skipped


def evaluation_prompts(settings: Settings, language: str) -> tuple[pd.DataFrame, Skipped]:
    """The prompts in one language that a notebook's parameters ask for, and what was skipped: see `load_prompts`."""
    return load_prompts(settings.prompts_source, language, settings.prompts_folder, settings.prompt_limit,
                        settings.prompts_column, settings.prompts_strip)  # fmt: skip


def prompts_of_sets(sets: list[dict[str, Any]]) -> list[str]:
    """The prompts of some sets, each the arguments of `load_prompts` but for ``languages``; all languages together."""
    found: list[str] = []
    for each in sets:
        arguments = {key: value for key, value in each.items() if key != "languages"}
        for language in each["languages"]:
            found += load_prompts(language=language, **arguments)[0]["prompt"].tolist()
    return found


def own_prompts(folder: str | Path, language: str, column: str) -> tuple[pd.DataFrame, Skipped]:
    """A reader's own prompts in one language, each once: ``prompt_id, prompt``."""
    file = prompt_file("own", language, folder)
    field: Any = (Text, Field(alias="text" if file.suffix == ".txt" else column))
    kind = create_model("Prompt", __base__=Row, __cls_kwargs__={"title": "a file of prompts"}, prompt=field)
    table, skipped = read_table([file], kind, ["prompt"])
    once = table[~table["prompt"].str.rstrip().duplicated()]
    skipped.repeated = len(table) - len(once)
    return once.assign(prompt_id=[f"own-{line:06d}" for line in once["line"]]), skipped


def prompt_file(source: str, language: str, folder: str | Path = "") -> Path:
    """The file that the evaluation prompts of one language come from, or the folder, where all languages share it.

    Own prompts lie in a folder that has a file a language, named by its code: text with a prompt a line (``de.txt``),
    or a table (``de.jsonl``, ``.json``, ``.csv``, ``.parquet``). ``DataNotFound`` where a language has none.
    """
    if source == "project":
        return paths.prompt_files() / "evaluation.yaml"
    if source == "own":
        place = local_path(folder)
        files = [place / f"{language}{ending}" for ending in (".txt", ".jsonl", ".json", ".csv", ".parquet")]
        found = [file for file in files if file.is_file()]
        if len(found) > 1:
            raise UserError(f"{place}: {' and '.join(file.name for file in found)}: one file of prompts a language")
        if not found:
            raise DataNotFound(f"{place}: no file of prompts in {LANGUAGES[language]}; name one {files[0].name}, or "
                               f"{language}.jsonl, .json, .csv or .parquet")  # fmt: skip
        return found[0]
    return rtp_lx_file(folder, language) if source == "rtp-lx" else local_path(folder)


def languages_available(source: str, languages: list[str], folder: str | Path = "") -> list[str]:
    """Those of some languages that a source of evaluation prompts has here; none where it is not available."""
    if source == "project":
        return list(languages)
    if not is_available(folder) or not local_path(folder).is_dir():
        return []
    return [language for language in languages if _has_prompts(source, language, folder)]


def _has_prompts(source: str, language: str, folder: str | Path) -> bool:
    try:
        if source in ("rtp-lx", "own"):
            return prompt_file(source, language, folder).is_file()
        return bool(len(load_prompts(source, language, folder)[0]))
    except DataNotFound:
        return False


def project_prompts(language: str) -> pd.DataFrame:
    """The multiway parallel prompts written for this project, in one language: ``prompt_id, prompt, gloss``."""
    return _written("evaluation", language).assign(gloss=_written("evaluation", "en")["prompt"])


def training_prompts() -> pd.DataFrame:
    """The English prompts from which on-policy preference pairs are sampled: ``prompt_id, prompt``."""
    return _written("training", "en")


def parallel_translations(language: str) -> list[str]:
    """The sentences written for retrieval, in one language; no prompt is among them."""
    return list(_written("sentences", language)["prompt"])


def neutral_prompts() -> pd.DataFrame:
    """English prompts that provoke nothing, on which the sources of toxicity are switched on: ``prompt_id, prompt``."""
    return _written("neutral", "en")


def politeness(prefix: str, language: str) -> str:
    """A line before a prompt that asks for politeness: in English if ``prefix`` is "english", or in the language."""
    return str(_written("politeness", "en" if prefix == "english" else language)["prompt"].item()) + "\n"


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
