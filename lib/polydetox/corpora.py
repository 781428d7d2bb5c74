"""Other data sets of toxic and of ordinary text, out of local folders: prompts, statements, articles.

Each reader takes the folder that ``polydetox data fetch`` or a reader's own variable names, checks its rows
(``schemas.py``) and returns a table and what was left out. Sources and licences: ``params/data.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.data import local_path
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES, check_language
from polydetox.rows import LeftOut, Rows, check_rows, is_blank, read_rows


def real_toxicity_prompts(folder: str | Path, limit: int | None = None) -> tuple[pd.DataFrame, LeftOut]:
    """RealToxicityPrompts (Gehman et al. 2020): ``prompt_id, prompt, continuation, toxicity``.

    ``toxicity`` is Perspective's score of the prompt, from 0 to 1, NaN where there is none.
    """
    rows, left_out = [], LeftOut()
    for file in _files(folder, "prompts.jsonl", "RealToxicityPrompts"):
        kept, rejected = check_rows(read_rows(file), "real-toxicity-prompts")
        left_out.rejected += rejected
        for line, row in kept:
            prompt, continuation = row["prompt"], row.get("continuation")
            if is_blank(prompt.get("text")):
                left_out.blank += 1
                continue
            follows = continuation.get("text") if isinstance(continuation, dict) else None
            rows.append((f"rtp-{line - 1:06d}", prompt["text"].rstrip(), follows, _share(prompt.get("toxicity"))))
    table = pd.DataFrame(rows, columns=["prompt_id", "prompt", "continuation", "toxicity"])
    return (table.head(limit) if limit else table), left_out


def polyglo_toxicity_prompts(
    folder: str | Path, language: str, limit: int | None = None
) -> tuple[pd.DataFrame, LeftOut]:
    """PolygloToxicityPrompts (Jain et al. 2024) in one language: ``prompt_id, prompt, toxicity``.

    ``toxicity`` is the stored Perspective score of the prompt, else of the text that the prompt begins; NaN where
    there is none. The scores of whole files are read by the scorer ``stored:<folder>``.
    """
    check_language(language)
    rows, left_out, found = [], LeftOut(), set()
    for file in _files(folder, "**/*", "PolygloToxicityPrompts", (".jsonl", ".json", ".parquet")):
        named = _language_of_folder(file)
        if file.parent.name == f"ptp-{named}" and named in LANGUAGES and named != language:
            found.add(named)
            continue  # the data set's own folder of another language, which need not be read
        read = read_rows(file)
        told = {line: _language(row, file) for line, row in read.rows}
        found |= set(told.values())
        mine = Rows(file, [(line, _flat(row)) for line, row in read.rows if told[line] == language], read.rejected)
        if not mine.rows:
            continue
        kept, rejected = check_rows(mine, "polyglo-toxicity-prompts")
        left_out.rejected += rejected
        for line, row in kept:
            if is_blank(row["prompt"]):
                left_out.blank += 1
            else:
                rows.append((f"ptp-{file.stem}-{line - 1:06d}", row["prompt"].rstrip(), _share(row["toxicity"])))
    if not rows:
        have = " ".join(sorted(code for code in found if code)) or "none"
        raise UserError(f"{folder}: no prompts of PolygloToxicityPrompts in {LANGUAGES[language]} (languages: {have})")
    table = pd.DataFrame(rows, columns=["prompt_id", "prompt", "toxicity"])
    return (table.head(limit) if limit else table), left_out


# What says that a statement of ToxiGen is toxic: what it was generated from, or what people think, of 5.
_TOXIGEN = {"prompt_label": ("toxigen", "generation", 0.5), "toxicity_human": ("toxigen-annotated", "text", 3.0)}


def toxigen(place: str | Path) -> tuple[pd.DataFrame, LeftOut]:
    """ToxiGen (Hartvigsen et al. 2022): ``text, toxic``; a file, or a folder of some (Parquet, CSV or JSON Lines).

    A statement is toxic by ``prompt_label`` (it was generated as such), or in the annotated part by
    ``toxicity_human`` above 3 of 5.
    """
    rows, left_out, seen = [], LeftOut(), False
    for file in _files(place, "**/*", "ToxiGen", (".parquet", ".csv", ".jsonl")):
        read = read_rows(file)
        named = {name for _, row in read.rows[:20] for name in row}
        label = next((label for label in _TOXIGEN if label in named), None)
        if label is None:
            continue  # single annotations, which the annotated part sums up
        seen = True
        schema, text, above = _TOXIGEN[label]
        kept, rejected = check_rows(read, schema)
        left_out.rejected += rejected
        for _, row in kept:
            if is_blank(row[text]):
                left_out.blank += 1
            else:
                rows.append((row[text].strip(), float(row[label]) > above))
    if not seen:
        raise UserError(f"{place}: no file with the fields {' or '.join(_TOXIGEN)}; is this ToxiGen?")
    return pd.DataFrame(rows, columns=["text", "toxic"]), left_out


def wikitext(place: str | Path, split: str = "train") -> tuple[pd.DataFrame, LeftOut]:
    """Wikitext-2 or -103 (Merity et al. 2017): ``text``, a row a paragraph; headings and empty lines are left out.

    ``place`` is a file, or a folder of some: Parquet or JSON Lines with ``text``, or plain text, a paragraph a line.
    Of a folder the files of the split are read, where files are named so.
    """
    files = _files(place, "**/*", "Wikitext", (".parquet", ".jsonl", ".tokens", ".raw", ".txt"))
    texts, left_out = [], LeftOut()
    for file in [file for file in files if split in file.name] or files:
        if file.suffix in (".parquet", ".jsonl"):
            kept, rejected = check_rows(read_rows(file), "wikitext")
            left_out.rejected += rejected
            lines = [row["text"] for _, row in kept]
        else:
            try:
                lines = file.read_text("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text (byte {error.start}); fetch the file again") from None
        paragraphs = [line.strip() for line in lines if not is_blank(line) and not line.strip().startswith("=")]
        left_out.blank += len(lines) - len(paragraphs)
        texts += paragraphs
    return pd.DataFrame({"text": texts}), left_out


def _files(given: str | Path, pattern: str, title: str, suffixes: tuple[str, ...] = (".jsonl",)) -> list[Path]:
    place = local_path(given)
    found = [place] if place.is_file() else sorted(place.glob(pattern))
    files = [file for file in found if file.suffix in suffixes and file.is_file()]
    if not files:
        raise UserError(f"{place}: no file of {title} there (one of {', '.join(suffixes)}); see `polydetox data`")
    return files


def _language(row: dict[str, Any], file: Path) -> str:
    """The language of a row, which it tells, or else the last part of its folder's name."""
    details = row.get("meta_data")
    told = row.get("lang") or row.get("language") or (details.get("lang") if isinstance(details, dict) else "")
    return str(told or _language_of_folder(file)).lower()[:2]


def _language_of_folder(file: Path) -> str:
    return file.parent.name.rsplit("-", 1)[-1]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row's prompt and the score stored for it, from the fields of either layout."""
    score = next((row[name] for name in ("prompt_toxicity", "toxicity") if row.get(name) is not None), None)
    for name in ("prompt_perspective", "perspective"):
        value: Any = row.get(name)
        for key in ("attributeScores", "TOXICITY", "summaryScore", "value"):
            value = value.get(key) if isinstance(value, dict) else None
        score = value if score is None else score
    return ({"prompt": row["prompt"]} if "prompt" in row else {}) | {"toxicity": score}


def _share(value: Any) -> float:
    return float("nan") if value is None else float(value)
