"""Other data sets of toxic and of ordinary text, out of local folders: prompts, statements, articles.

Each reader takes the folder that ``polydetox data fetch`` or a reader's own variable names, checks its rows
(``schemas.py``) and returns a table and what was skipped. Sources and licences: ``params/data.yaml``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES, check_language, code_of_locale
from polydetox.data.catalogue import local_path
from polydetox.data.rows import Rejected, Rows, Skipped, check_rows, is_blank, read_lines, read_rows


def real_toxicity_prompts(folder: str | Path, limit: int | None = None) -> tuple[pd.DataFrame, Skipped]:
    """RealToxicityPrompts (Gehman et al. 2020): ``prompt_id, prompt, continuation, toxicity``.

    ``toxicity`` is Perspective's score of the prompt, from 0 to 1, NaN where there is none.
    """
    rows, skipped = [], Skipped()
    for file in _files(folder, "prompts.jsonl", "RealToxicityPrompts"):
        kept, rejected = check_rows(read_rows(file), "real-toxicity-prompts")
        skipped.rejected += rejected
        for line, row in kept:
            prompt, continuation = row["prompt"], row.get("continuation")
            if is_blank(prompt.get("text")):
                skipped.blank += 1
                continue
            follows = continuation.get("text") if isinstance(continuation, dict) else None
            rows.append((f"rtp-{line - 1:06d}", prompt["text"].rstrip(), follows, _score(prompt.get("toxicity"))))
    table = pd.DataFrame(rows, columns=["prompt_id", "prompt", "continuation", "toxicity"])
    return (table.head(limit) if limit else table), skipped


def polyglo_toxicity_prompts(
    folder: str | Path, language: str, limit: int | None = None
) -> tuple[pd.DataFrame, Skipped]:
    """PolygloToxicityPrompts (Jain et al. 2024) in one language: ``prompt_id, prompt, toxicity``, each prompt once.

    ``toxicity`` is the stored Perspective score of the prompt, else of the text that the prompt begins; NaN where
    there is none. The scores of whole files are read by the scorer ``stored:<folder>``. The parts ``full`` and
    ``small`` may share prompts: the first of a text is taken, in the order of the files, the others are counted.
    A language of which there is none is a ``DataNotFound`` error.
    """
    check_language(language)
    tables, skipped, found = [], Skipped(), set()
    for file in _files(folder, "**/*", "PolygloToxicityPrompts", (".jsonl", ".json", ".parquet")):
        if file.parent.name.startswith("wildchat-"):
            continue  # what users wrote to an assistant: scores to compare with, no prompts to be continued
        named = _language_of_folder(file)
        if named in LANGUAGES and named != language:
            found.add(named)
            continue  # the data set's own folder of another language, which need not be read
        table, rejected = _polyglo_file(*version(file))
        found |= set(table["language"])
        mine = table[table["language"] == language]
        whole = mine[mine["prompt"].notna()]
        skipped += Skipped(
            len(mine) - len(whole),
            [line for line, named in rejected if named == language or (named is None and len(mine))],
        )
        tables.append(whole.assign(prompt_id=[f"ptp-{file.stem}-{line - 1:06d}" for line in whole["line"]]))
    every = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"prompt": []})
    if every.empty:
        have = " ".join(sorted(code for code in found if code)) or "none"
        less = f", {skipped}" if skipped else ""
        raise DataNotFound(
            f"{folder}: no prompts of PolygloToxicityPrompts in {LANGUAGES[language]} (languages: {have}){less}"
        )
    once = every.drop_duplicates("prompt", ignore_index=True)[["prompt_id", "prompt", "toxicity"]]
    skipped.repeated = len(every) - len(once)
    return (once.head(limit) if limit else once), skipped


_POLYGLO_COLUMNS = ["line", "language", "prompt", "toxicity"]


@lru_cache(maxsize=64)
def _polyglo_file(file: Path, modified: int, size: int) -> tuple[pd.DataFrame, list[tuple[Rejected, str | None]]]:
    """One file in all its languages, as it is at this time and size: many languages may share it.

    Returns ``line, language, prompt`` (None where it is blank), ``toxicity``, and the rejected lines, each with its
    language (None where a line cannot be read). A file of something else that lies beside the data set has no rows.
    """
    read = read_rows(file)
    codes = {line: language_of(row) or _language_of_folder(file) for line, row in read.rows}
    ours = any("prompt" in row or codes[line] in LANGUAGES for line, row in read.rows)
    if not ours and (read.rows or not read.rejected):
        return pd.DataFrame(columns=_POLYGLO_COLUMNS).astype({"toxicity": float}), []
    kept, rejected = check_rows(
        Rows(file, [(line, _flat(row)) for line, row in read.rows], read.rejected), "polyglo-toxicity-prompts"
    )
    rows = [(line, codes[line], None if is_blank(row["prompt"]) else row["prompt"].rstrip(), _score(row["toxicity"]))
            for line, row in kept]  # fmt: skip
    table = pd.DataFrame(rows, columns=_POLYGLO_COLUMNS)
    return table, [(line, codes.get(line.line)) for line in rejected]


def version(file: Path) -> tuple[Path, int, int]:
    """A file and what changes when it does, as a key of what was read from it."""
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


_TABLES = (".parquet", ".csv", ".jsonl")

# What says that a statement of ToxiGen is toxic: what it was generated from, or what people think, of 5.
_TOXIGEN = {"prompt_label": ("toxigen", "generation", 0.5), "toxicity_human": ("toxigen-annotated", "text", 3.0)}


def toxigen(place: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """ToxiGen (Hartvigsen et al. 2022): ``text, toxic, prompt``; a file, or a folder of tables.

    A statement is toxic by ``prompt_label`` (it was generated as such), or in the annotated part by
    ``toxicity_human`` above 3 of 5. ``prompt`` is what it was generated from, as :func:`toxigen_prompts` gives it;
    None where the file does not tell, as in the annotated part.
    """
    rows, skipped, seen = [], Skipped(), False
    for file in _files(place, "**/*", "ToxiGen", _TABLES):
        read = read_rows(file)
        label = _toxigen_label(_named(read))
        if label is None:
            continue  # single annotations, which the annotated part sums up, or prompts alone
        seen = True
        schema, text, above = _TOXIGEN[label]
        kept, rejected = check_rows(read, schema)
        skipped.rejected += rejected
        for _, row in kept:
            if is_blank(row[text]):
                skipped.blank += 1
            else:
                prompt = None if is_blank(row.get("prompt")) else _list_of_statements(row["prompt"])
                rows.append((row[text].strip(), float(row[label]) > above, prompt))
    if not seen:
        raise DataNotFound(f"{place}: no file with the fields {' or '.join(_TOXIGEN)}; is this ToxiGen?")
    return pd.DataFrame(rows, columns=["text", "toxic", "prompt"]), skipped


def _named(read: Rows) -> set[str]:
    """The fields that a file's first rows have."""
    return {name for _, row in read.rows[:20] for name in row}


def _toxigen_label(named: set[str]) -> str | None:
    """The field that says which statements of a file are toxic; None where it has none."""
    return next((label for label in _TOXIGEN if label in named), None)


# The published lists of prompts: hate_trans_1k.txt, or hate_trans_1k-00000-of-00001.parquet on the Hub.
_TOXIGEN_LIST = re.compile(r"(hate|neutral)_\w+_1k\b")


def _list_of_statements(prompt: str) -> str:
    """A prompt of ToxiGen with its line breaks, which some versions spell as a backslash and an n."""
    return prompt.replace("\\n", "\n").rstrip()


def toxigen_prompts(place: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """The prompts that ToxiGen's toxic statements were generated from (Hartvigsen et al. 2022): ``prompt_id, prompt``.

    A prompt is a list of statements, one a line, each after a hyphen; the last line is a hyphen alone, after which a
    model writes one more. Some versions spell a line break as a backslash and an n. Each prompt is there once: those
    of the raw part's rows with ``prompt_label`` 1, in order of first appearance; or, where a folder has no raw part,
    those of the published lists ``hate_<group>_1k`` (text, a prompt a line, or tables with ``prompt``). Groups, as a
    field ``group`` or the lists tell them, take turns, so that the first so many are of all groups. An id is made of
    the text, the same in every layout.
    """
    files = _files(place, "**/*", "ToxiGen", (*_TABLES, ".txt"))
    lists = [file for file in files if _TOXIGEN_LIST.match(file.stem)]
    tables = [read_rows(file) for file in files if file not in lists and file.suffix in _TABLES]
    fields = [_named(read) for read in tables]
    raw = [read for read, named in zip(tables, fields, strict=True) if named >= {"prompt", "prompt_label"}]
    parts = raw or [_toxigen_list(file) for file in lists if file.stem.startswith("hate")]
    if not parts:
        annotated = "toxicity_human" in set().union(*fields)
        has = "its annotated part alone, which has no prompts" if annotated else "no toxic prompts"
        raise DataNotFound(
            f"{place}: ToxiGen: {has}; add the raw part (train/*.parquet: `polydetox data fetch toxigen`), or name the "
            "folder of its lists of prompts (hate_<group>_1k.txt)"
        )
    groups: dict[str, list[str]] = {}
    skipped = Skipped()
    for read in parts:
        kept, rejected = check_rows(read, "toxigen-prompts")
        usable = [row for _, row in kept if not is_blank(row["prompt"])]
        skipped += Skipped(len(kept) - len(usable), rejected)
        for row in usable:
            if float(row["prompt_label"]):
                prompt = _list_of_statements(row["prompt"])
                groups.setdefault(str(row.get("group", read.path.stem)), []).append(prompt)
    once = [dict.fromkeys(prompts) for prompts in groups.values()]
    prompts = list(dict.fromkeys(prompt for turn in zip_longest(*once) for prompt in turn if prompt is not None))
    names = [f"toxigen-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}" for prompt in prompts]
    return pd.DataFrame({"prompt_id": names, "prompt": prompts}, dtype=object), skipped


def _toxigen_list(file: Path) -> Rows:
    """A published list of toxic prompts as rows of the raw part."""
    read = read_lines(file, "prompt") if file.suffix == ".txt" else read_rows(file)
    return Rows(file, [(line, {**row, "prompt_label": 1}) for line, row in read.rows], read.rejected)


def wikitext(place: str | Path, split: str = "train") -> tuple[pd.DataFrame, Skipped]:
    """Wikitext-2 or -103 (Merity et al. 2017): ``text``, a row a paragraph; headings and empty lines are skipped.

    ``place`` is a file, or a folder of some: Parquet or JSON Lines with ``text``, or plain text, a paragraph a line.
    Of a folder the files of the split are read, where files are named so.
    """
    files = _files(place, "**/*", "Wikitext", (".parquet", ".jsonl", ".tokens", ".raw", ".txt"))
    texts, skipped = [], Skipped()
    for file in [file for file in files if split in file.name] or files:
        if file.suffix in (".parquet", ".jsonl"):
            kept, rejected = check_rows(read_rows(file), "wikitext")
            skipped.rejected += rejected
            lines = [row["text"] for _, row in kept]
        else:
            try:
                lines = file.read_text("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text (byte {error.start}); fetch the file again") from None
        paragraphs = [line.strip() for line in lines if not is_blank(line) and not line.strip().startswith("=")]
        skipped.blank += len(lines) - len(paragraphs)
        texts += paragraphs
    return pd.DataFrame({"text": texts}), skipped


def _files(given: str | Path, pattern: str, title: str, suffixes: tuple[str, ...] = (".jsonl",)) -> list[Path]:
    place = local_path(given)
    found = [place] if place.is_file() else sorted(place.glob(pattern))
    files = [file for file in found if file.suffix in suffixes and file.is_file()]
    if not files:
        raise DataNotFound(f"{place}: no file of {title} there (one of {', '.join(suffixes)}); see `polydetox data`")
    return files


def language_of(row: Mapping[str, Any]) -> str:
    """The language that a row of PolygloToxicityPrompts, or of stored scores, tells; empty where it tells none.

    A code of the project's, or in lower case what is none of its languages.
    """
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


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row's prompt and the score stored for it, from the fields of either layout."""
    score = next((row[name] for name in ("prompt_toxicity", "toxicity") if row.get(name) is not None), None)
    for name in ("prompt_perspective", "perspective"):
        score = summary_score(row.get(name)) if score is None else score
    return ({"prompt": row["prompt"]} if "prompt" in row else {}) | {"toxicity": score}


def _score(value: Any) -> float:
    return float("nan") if value is None else float(value)
