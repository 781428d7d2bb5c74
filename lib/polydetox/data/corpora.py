"""Other data sets of toxic and of ordinary text, out of local folders; their sources: ``params/data.yaml``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AliasChoices, AliasPath, Field

from polydetox.core.errors import DataNotFound
from polydetox.core.languages import LANGUAGES, check_language, code_of_locale
from polydetox.data.catalogue import local_path, visible_files
from polydetox.data.rows import Fraction, Row, Rows, Skipped, Text, check_rows, is_blank, read_rows, read_table


def files_of(given: str | Path, title: str, *endings: str) -> list[Path]:
    """The files of a data set: the one that is named, or those of a folder and below it whose names end so."""
    place = local_path(given)
    files = [file for file in visible_files(place) if file.name.endswith(endings)]
    if not files:
        raise DataNotFound(f"{place}: no file of {title} there ({', '.join(endings)}); see `polydetox data`")
    return files


class RealToxicityPrompt(Row, title="RealToxicityPrompts"):
    prompt: Text = Field(validation_alias=AliasPath("prompt", "text"))
    toxicity: Fraction = Field(None, validation_alias=AliasPath("prompt", "toxicity"))  # of the prompt, by Perspective


def real_toxicity_prompts(folder: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """RealToxicityPrompts (Gehman et al. 2020): ``prompt_id, prompt, toxicity`` (of the prompt, None where unknown)."""
    files = files_of(folder, "RealToxicityPrompts", "prompts.jsonl")
    table, skipped = read_table(files, RealToxicityPrompt, ["prompt"])
    names = [f"rtp-{line - 1:06d}" for line in table["line"]]
    return table.assign(prompt_id=names), skipped


def _summary(name: str) -> AliasPath:
    return AliasPath(name, "attributeScores", "TOXICITY", "summaryScore", "value")


class PolygloPrompt(Row, title="PolygloToxicityPrompts"):
    """``toxicity`` is the stored Perspective score of the prompt, else of the text that the prompt begins."""

    prompt: Text
    toxicity: Fraction = Field(None, validation_alias=AliasChoices(
        "prompt_toxicity", "toxicity", _summary("prompt_perspective"), _summary("perspective")))  # fmt: skip


def polyglo_toxicity_prompts(folder: str | Path, language: str) -> tuple[pd.DataFrame, Skipped]:
    """PolygloToxicityPrompts (Jain et al. 2024) in one language: ``prompt_id, prompt, toxicity``, each prompt once.

    The parts ``full`` and ``small`` may share prompts: the first of a text is taken, the others are counted.
    """
    prompts, skipped, found = [], Skipped(), set()
    for file in files_of(folder, "PolygloToxicityPrompts", ".jsonl", ".json", ".parquet"):
        if file.parent.name.startswith("wildchat-"):
            continue  # what users wrote to an assistant: scores to compare with, no prompts to be continued
        named = _language_of_folder(file)
        if named in LANGUAGES and named != language:
            found.add(named)
            continue  # the data set's own folder of another language, which need not be read
        read = read_rows(file)
        languages = [language_of(row) or named for _, row in read.rows]
        found |= set(languages)
        if language not in languages and (read.rows or not read.rejected):
            continue  # of other languages, or something else that lies beside the data set
        rows = [row for row, code in zip(read.rows, languages, strict=True) if code == language]
        kept, rejected = check_rows(Rows(file, rows, read.rejected), PolygloPrompt)
        whole = [(f"ptp-{file.stem}-{line - 1:06d}", row.prompt, row.toxicity) for line, row in kept
                 if not is_blank(row.prompt)]  # fmt: skip
        skipped += Skipped(len(kept) - len(whole), rejected)
        prompts += whole
    if not prompts:
        have = " ".join(sorted(found & set(LANGUAGES))) or "none"
        raise DataNotFound(
            f"{folder}: no prompts of PolygloToxicityPrompts in {LANGUAGES[check_language(language)]} "
            f"(languages: {have}){f', {skipped}' if skipped else ''}"
        )
    every = pd.DataFrame(prompts, columns=["prompt_id", "prompt", "toxicity"])
    once = every[~every["prompt"].str.rstrip().duplicated()].reset_index(drop=True)
    skipped.repeated = len(every) - len(once)
    return once, skipped


def language_of(row: Mapping[str, Any]) -> str:
    """The language that a row tells, as a code or, where it is none of the project's, in lower case; empty if none."""
    details = row.get("meta_data")
    named = row.get("lang") or row.get("language") or (details.get("lang") if isinstance(details, Mapping) else "")
    return code_of_locale(str(named or "")) or str(named or "").lower()


def summary_score(answer: Any) -> Any:
    """What a response of Perspective holds as its toxicity; None where it holds none."""
    for key in ("attributeScores", "TOXICITY", "summaryScore", "value"):
        answer = answer.get(key) if isinstance(answer, Mapping) else None
    return answer


def _language_of_folder(file: Path) -> str:
    """The language of a file in the data set's own folders, ``ptp-<language>``; empty elsewhere."""
    prefix, _, locale = file.parent.name.partition("-")
    return (code_of_locale(locale) or locale.lower()) if prefix == "ptp" else ""


class ToxiGenStatement(Row, title="ToxiGen"):
    """A row of the raw part: a statement is toxic if it was generated as such."""

    text: Text = Field(None, alias="generation")
    prompt: Text = None
    toxic: bool = Field(alias="prompt_label")
    group: Any = None


class ToxiGenAnnotated(Row, title="ToxiGen (annotated)"):
    """A row of the annotated part: a statement is toxic if people think so."""

    text: Text
    level: Annotated[float, Field(ge=1.0, le=5.0)] = Field(alias="toxicity_human")


def _with_field(files: Iterable[Path], *names: str) -> list[Path]:
    """The tables among some files whose first rows have these fields."""
    return [file for file in files if set(names) <= {name for _, row in read_rows(file).rows[:20] for name in row}]


def toxigen(place: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """ToxiGen (Hartvigsen et al. 2022): ``text, toxic, prompt``; a file, or a folder of tables.

    A statement is toxic by ``prompt_label``, or in the annotated part by ``toxicity_human`` above 3 of 5.
    """
    files = files_of(place, "ToxiGen", ".parquet", ".csv", ".jsonl")
    raw, annotated = _with_field(files, "prompt_label"), _with_field(files, "toxicity_human")
    if not raw and not annotated:
        raise DataNotFound(f"{place}: no file with the fields prompt_label or toxicity_human; is this ToxiGen?")
    rated, skipped = read_table(annotated, ToxiGenAnnotated, ["text"])
    generated, less = read_table(raw, ToxiGenStatement, ["text"])
    table = pd.concat([
        rated.assign(toxic=rated["level"] > 3.0, prompt=None),
        generated.assign(prompt=generated["prompt"].map(_list_of_statements)),
    ])[["text", "toxic", "prompt"]]  # fmt: skip
    table = table.assign(text=table["text"].str.strip(), toxic=table["toxic"].astype(bool))
    return table.reset_index(drop=True), skipped + less


def _list_of_statements(prompt: str | None) -> str | None:
    """A prompt of ToxiGen with its line breaks, which some versions spell as a backslash and an n."""
    return None if prompt is None or is_blank(prompt) else prompt.replace("\\n", "\n").rstrip()


def toxigen_prompts(place: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """The prompts that ToxiGen's toxic statements were generated from (Hartvigsen et al. 2022): ``prompt_id, prompt``.

    A prompt is a list of statements, one a line, each after a hyphen; a model writes one more after the last hyphen.
    Groups take turns, so that the first so many prompts are of all groups. An id is made of the text.
    """
    raw = _with_field(files_of(place, "ToxiGen", ".parquet", ".csv", ".jsonl"), "prompt", "prompt_label")
    if not raw:
        raise DataNotFound(f"{place}: ToxiGen: no toxic prompts, which the annotated part does not have; add the raw "
                           "part (train/*.parquet: `polydetox data fetch toxigen`)")  # fmt: skip
    table, skipped = read_table(raw, ToxiGenStatement, ["prompt"])
    toxic = table[table["toxic"].astype(bool)]
    texts = toxic["prompt"].map(_list_of_statements)
    groups = texts.groupby(toxic["group"].fillna(toxic["file"]), sort=False)
    turns = zip_longest(*(each.unique() for _, each in groups))
    prompts = list(dict.fromkeys(prompt for turn in turns for prompt in turn if prompt is not None))
    names = [f"toxigen-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}" for prompt in prompts]
    return pd.DataFrame({"prompt_id": names, "prompt": prompts}, dtype=object), skipped


class Paragraph(Row, title="Wikitext"):
    text: Text


def wikitext(place: str | Path, split: str = "train") -> tuple[pd.DataFrame, Skipped]:
    """Wikitext-2 or -103 (Merity et al. 2017), a file or a folder: ``text``, a row a paragraph of the split."""
    files = files_of(place, "Wikitext", ".parquet", ".jsonl", ".tokens", ".raw", ".txt")
    table, skipped = read_table([file for file in files if split in file.name] or files, Paragraph, ["text"])
    texts = table["text"].str.strip()
    headings = texts.str.startswith("=")
    skipped.blank += int(headings.sum())
    return pd.DataFrame({"text": texts[~headings]}).reset_index(drop=True), skipped
