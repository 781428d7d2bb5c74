"""Preference pairs of published data sets: a prompt, a chosen and a rejected completion."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.rows import Skipped, check_rows, is_blank, read_rows
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_id, rtp_lx_rows

PAIR_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected"]

# Translations lie at the same Index or, in some languages from 960 on, one further: see rtp_lx_rows.
_SHIFT = 1


def rtp_lx_pairs(folder: str | Path, held_out_prompts: int, limit: int | None = None) -> tuple[pd.DataFrame, Skipped]:
    """English pairs from RTP-LX: the benign completion chosen, the toxic one rejected; and what was skipped.

    Split by prompt: nothing that is evaluated in any language of the folder (the first ``held_out_prompts`` of each)
    is trained on. Left out are the English rows of the same ``Index`` as an evaluated row, their neighbours, since
    some languages are shifted by one, and the rows with the text of an evaluated English prompt, whatever its case,
    spaces and punctuation. Columns: ``prompt_id, prompt, chosen, rejected``.
    """
    held_out: set[int] = set()
    held_out_texts: set[str] = set()
    for language in LANGUAGES if held_out_prompts else []:
        try:
            file = rtp_lx_file(folder, language)
        except UserError:
            continue
        rows = [row for row in rtp_lx_rows(folder, language)[0] if not is_blank(row["Prompt"])][:held_out_prompts]
        if not all(row["numbered"] for row in rows):
            raise UserError(
                f"{file}: rows without field 'Index', which tells what translates what; pairs from this version could "
                "hold evaluated prompts: take another version of RTP-LX, or other pairs"
            )
        for row in rows:
            held_out |= set(range(row["Index"] - _SHIFT, row["Index"] + _SHIFT + 1))
            held_out_texts.add(letters(row["Prompt"]))
    english, skipped = rtp_lx_rows(folder, "en")
    needed = ("Prompt", "Completion", "BenignCompletion")
    whole = [row for row in english if not any(is_blank(row.get(field)) for field in needed)]
    skipped.blank = len(english) - len(whole)
    pairs = pd.DataFrame([
        {"prompt_id": rtp_lx_id(row), "prompt": row["Prompt"].rstrip(),
         "chosen": _rtp_lx_completion(row, "BenignCompletion"), "rejected": _rtp_lx_completion(row, "Completion")}
        for row in whole if row["Index"] not in held_out and letters(row["Prompt"]) not in held_out_texts
    ], columns=PAIR_COLUMNS)  # fmt: skip
    pairs = pairs[pairs["chosen"] != pairs["rejected"]].reset_index(drop=True)
    if pairs.empty:
        raise UserError(
            f"{rtp_lx_file(folder, 'en')}: no pairs: {skipped}, and the rest is evaluated in some language "
            f"('prompts: limit:' is {held_out_prompts})"
        )
    return (pairs.head(limit) if limit else pairs), skipped


def _rtp_lx_completion(row: dict[str, Any], field: str) -> str:
    """A completion as it follows its prompt; of 1,998 English ones 425 begin with a space or, by chance, a newline."""
    return follows(row["Prompt"].rstrip(), re.sub(r"^\s+", " ", row[field]))


def letters(text: str) -> str:
    """A text without what may differ between two copies of it: case, spaces and punctuation."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def toxicity_pairwise(folder: str | Path, limit: int | None = None) -> tuple[pd.DataFrame, Skipped]:
    """The paper's pairs: JSONL parts with ``prompt_text``, ``unpert_gen_text`` (chosen), ``pert_gen_text`` (rejected).

    Columns: ``prompt_id, prompt, chosen, rejected``. Rows without any of the three, and malformed ones, are skipped.
    """
    parts = sorted(local_path(folder).glob("*.jsonl")) if str(folder) else []
    if not parts:
        raise UserError(
            f"toxicity_pairwise: no *.jsonl in folder {str(folder)!r}; download the data set (see `polydetox data`) "
            "and set 'pairs: toxicity-pairwise: folder:' in the profile or -p folder"
        )
    rows, skipped = [], Skipped()
    for part in parts:
        kept, rejected = check_rows(read_rows(part), "toxicity-pairwise")
        skipped.rejected += rejected
        for line, row in kept:
            prompt, chosen, rejected_text = (row[name] for name in ("prompt_text", "unpert_gen_text", "pert_gen_text"))
            if any(is_blank(text) for text in (prompt, chosen, rejected_text)):
                skipped.blank += 1
            else:
                prompt = prompt.rstrip()
                rows.append(
                    (f"{part.stem}-{line - 1:05d}", prompt, follows(prompt, chosen), follows(prompt, rejected_text))
                )
    if not rows:
        raise UserError(f"{parts[0]}: no row has all of 'prompt_text', 'unpert_gen_text' and 'pert_gen_text'")
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    return (pairs.head(limit) if limit else pairs), skipped


# What a completion begins with where no space goes before it: a stop or a closing mark; a quotation mark that no word
# touches; the apostrophe of a contraction; a hyphen or slash that a word touches.
_BELONGS_TO_THE_PROMPT = re.compile(
    r"""[,.;:!?%…)\]}”»]|["'’]++(?=$|[\s,.;:!?…)\]}”»–—-])|['’](?:s|t|re|ve|ll|d|m)\b|[-–—/]+\w"""
)

# What a prompt ends in where no space goes after it: an opening bracket or quotation mark; a hyphen or slash that
# touches a word.
_AWAITS_A_WORD = re.compile(r"""[(\[{“‘«]$|(?:^|[\s(\[{“‘«–—-])["']+$|\w[-–—/]$""")


def follows(prompt: str, completion: str) -> str:
    """An English completion as it follows its prompt: with a space before what begins a word, and none before what
    belongs to the word before.

    A mark belongs to what it touches. A quotation mark that a word follows opens (`` "Go away"``), one that a space or
    punctuation follows closes (``" he said``); a hyphen that a word follows joins (``-made``), a dash that a space
    follows stands alone (`` - he``). Stops, closing brackets and ``'t`` and its like never have a space before them;
    opening brackets and symbols (``@``, ``#``, ``$``) do. No space goes after a prompt that ends in an opening bracket
    or quotation mark, or in a hyphen after a word. White space that the completion begins with stays as it is.

    TRL tokenises prompt and completion together and splits them at the common prefix, so a word that did not begin a
    new token would take the last token of the prompt with it.
    """
    text = completion.rstrip()
    joined = text[0].isspace() or _BELONGS_TO_THE_PROMPT.match(text) or _AWAITS_A_WORD.search(prompt)
    return text if joined else f" {text}"
