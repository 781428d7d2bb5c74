"""Prompts and preference pairs: what is written for this project, and what readers bring in local folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox import paths
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES, check_language, rtp_lx_locale
from polydetox.params import read_yaml

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
        raise UserError(f"no prompts in {LANGUAGES[language]} ({language}) from source {source!r}")
    return table.reset_index(drop=True), skipped


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


def local_folder(folder: str | Path) -> Path:
    """A folder as a parameter names it, with ``~`` and ``$VARIABLES`` filled in.

    Parameters keep the variable, so that artefacts do not depend on where a reader keeps the data.
    """
    expanded = os.path.expandvars(str(folder))
    unset = re.match(r"\$\{?(\w+)", expanded)
    if unset:
        raise UserError(
            f"folder {str(folder)!r}: the environment variable {unset[1]} is not set; "
            f"export {unset[1]}=<the folder that holds the data> (see `polydetox data`)"
        )
    return Path(expanded).expanduser()


def rtp_lx_file(folder: str | Path, language: str) -> Path:
    """The file of one language in a folder of ``RTP_LX_<LOCALE>.json``; a ``UserError`` where there is none."""
    if not str(folder):
        raise UserError(
            "prompts from RTP-LX need their folder: set 'prompts: folder:' in the profile or -p prompts_folder "
            "(see `polydetox data`)"
        )
    folder = local_folder(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold RTP_LX_<LOCALE>.json (see `polydetox data`)")
    wanted = f"RTP_LX_{rtp_lx_locale(language)}.json".lower()
    for path in sorted(folder.glob("*.json")):
        if path.name.lower() == wanted:
            return path
    found = ", ".join(path.stem.removeprefix("RTP_LX_") for path in sorted(folder.glob("RTP_LX_*.json"))) or "none"
    raise UserError(f"{folder}: no RTP_LX_{rtp_lx_locale(language)}.json for language {language!r} (found: {found})")


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
    parts = sorted(local_folder(folder).glob("*.jsonl")) if str(folder) else []
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
