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
        read = read_rows(file)
        told = {line: _language(row) for line, row in read.rows}
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


def toxigen(folder: str | Path, human: bool = False) -> tuple[pd.DataFrame, LeftOut]:
    """ToxiGen (Hartvigsen et al. 2022): ``text, toxic``.

    By what the statement was generated from (``prompt_label``), or with ``human``, of the annotated part, by whether
    people find it more toxic than not (``toxicity_human`` above 3 of 5).
    """
    schema = "toxigen-annotated" if human else "toxigen"
    text, label = ("text", "toxicity_human") if human else ("generation", "prompt_label")
    rows, left_out, seen = [], LeftOut(), False
    for file in _files(folder, "**/*", "ToxiGen", (".parquet", ".csv", ".jsonl")):
        read = read_rows(file)
        if not any(label in row for _, row in read.rows[:1]):
            continue  # the other part
        seen = True
        kept, rejected = check_rows(read, schema)
        left_out.rejected += rejected
        for _, row in kept:
            if is_blank(row[text]):
                left_out.blank += 1
            else:
                rows.append((row[text].strip(), float(row[label]) > (3.0 if human else 0.5)))
    if not seen:
        raise UserError(f"{folder}: no file of ToxiGen with the fields {text!r} and {label!r}")
    return pd.DataFrame(rows, columns=["text", "toxic"]), left_out


def wikitext(folder: str | Path, split: str = "train") -> tuple[pd.DataFrame, LeftOut]:
    """Wikitext-2 or -103 (Merity et al. 2017): ``text``, a row a paragraph, headings and empty lines left out."""
    rows, left_out = [], LeftOut()
    for file in _files(folder, f"**/{split}*", f"Wikitext ({split})", (".parquet", ".jsonl")):
        kept, rejected = check_rows(read_rows(file), "wikitext")
        left_out.rejected += rejected
        for _, row in kept:
            if is_blank(row["text"]) or row["text"].strip().startswith("= "):
                left_out.blank += 1
            else:
                rows.append(row["text"].strip())
    return pd.DataFrame({"text": rows}), left_out


def _files(
    given: str | Path, pattern: str, title: str, suffixes: tuple[str, ...] = (".jsonl",)
) -> list[Path]:
    folder = local_path(given)
    files = [file for file in sorted(folder.glob(pattern)) if file.suffix in suffixes and file.is_file()]
    if not files:
        raise UserError(f"{folder}: no {pattern} ({', '.join(suffixes)}) of {title} there; see `polydetox data`")
    return files


def _language(row: dict[str, Any]) -> str:
    details = row.get("meta_data")
    told = row.get("lang") or row.get("language") or (details.get("lang") if isinstance(details, dict) else "") or ""
    return str(told).lower()[:2]


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
