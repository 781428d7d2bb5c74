"""Preference pairs of data sets: a prompt, a chosen and a rejected completion."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from pydantic import Field, create_model

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.rows import Row, Skipped, Text, is_blank, read_table
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_rows

PAIR_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected"]

# Translations lie at the same Index or, in some languages from 960 on, one further: see rtp_lx_rows.
_SHIFT = 1


def read_pairs(files: Sequence[Path], columns: Mapping[str, str], title: str) -> tuple[pd.DataFrame, Skipped]:
    """The pairs of some files with some ``columns``: ``prompt_id, prompt, chosen, rejected``; what was skipped."""
    fields = {name: (Text, Field(alias=columns[name])) for name in PAIR_COLUMNS[1:]}
    kind = create_model("Pair", __base__=Row, __cls_kwargs__={"title": title}, **fields)  # type: ignore[call-overload]
    table, skipped = read_table(files, kind, PAIR_COLUMNS[1:])
    if table.empty:
        raise UserError(f"{files[0]}: no row has all of {', '.join(map(repr, columns.values()))}")
    table["prompt"] = table["prompt"].str.rstrip()
    for side in ("chosen", "rejected"):
        table[side] = [follows(prompt, text) for prompt, text in zip(table["prompt"], table[side], strict=True)]
    table["prompt_id"] = [f"{file}-{line - 1:05d}" for file, line in zip(table["file"], table["line"], strict=True)]
    return table[PAIR_COLUMNS], skipped


def toxicity_pairwise(folder: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """The paper's pairs (Lee et al. 2024), in parts: the unperturbed text is chosen, the perturbed one rejected."""
    parts = sorted(local_path(folder).glob("*.jsonl")) if str(folder) else []
    if not parts:
        raise UserError(
            f"toxicity_pairwise: no *.jsonl in folder {str(folder)!r}; download the data set (see `polydetox data`) "
            "and set 'pairs: toxicity-pairwise: folder:' in the profile or -p folder"
        )
    columns = {"prompt": "prompt_text", "chosen": "unpert_gen_text", "rejected": "pert_gen_text"}
    return read_pairs(parts, columns, "toxicity_pairwise")


def rtp_lx_pairs(folder: str | Path, held_out_prompts: int) -> tuple[pd.DataFrame, Skipped]:
    """English pairs from RTP-LX: the benign completion chosen, the toxic one rejected; and what was skipped.

    Excluded are the English rows of the same ``Index`` as a row that is evaluated in any language (the first
    ``held_out_prompts`` of each), their neighbours, since some languages are shifted by one, and the rows with the text
    of an evaluated English prompt.
    """
    indices, texts = evaluated_prompts(folder, held_out_prompts)
    english, skipped = rtp_lx_rows(folder, "en")
    whole = english[~english[["prompt", "completion", "benign_completion"]].map(is_blank).any(axis=1)]
    skipped.blank = len(english) - len(whole)
    pairs = whole[~whole["index"].isin(indices) & ~whole["prompt"].map(letters).isin(texts)].copy()
    pairs["prompt"] = pairs["prompt"].str.rstrip()
    for side, column in (("chosen", "benign_completion"), ("rejected", "completion")):
        # Of 1,998 English completions 425 begin with a space or, by chance, a newline.
        pairs[side] = [follows(prompt, re.sub(r"^\s+", " ", text))
                       for prompt, text in zip(pairs["prompt"], pairs[column], strict=True)]  # fmt: skip
    pairs = pairs.loc[pairs["chosen"] != pairs["rejected"], PAIR_COLUMNS].reset_index(drop=True)
    if pairs.empty:
        raise UserError(
            f"{rtp_lx_file(folder, 'en')}: no pairs: {skipped}, and the rest is evaluated in some language "
            f"('prompts: limit:' is {held_out_prompts})"
        )
    return pairs, skipped


def evaluated_prompts(folder: str | Path, prompts: int) -> tuple[set[int], set[str]]:
    """The indices whose English rows may be those of evaluated prompts, and the letters of evaluated prompts."""
    indices, texts = set[int](), set[str]()
    for language in LANGUAGES if prompts else []:
        try:
            rows, _ = rtp_lx_rows(folder, language)
        except DataNotFound:
            continue
        rows = rows[~rows["prompt"].map(is_blank)].head(prompts)
        if not rows["numbered"].all():
            raise UserError(
                f"{rtp_lx_file(folder, language)}: rows without field 'Index', which tells what translates what; pairs "
                "from this version could hold evaluated prompts: take another version of RTP-LX, or other pairs"
            )
        indices |= {index + shift for index in rows["index"] for shift in range(-_SHIFT, _SHIFT + 1)}
        texts |= set(rows["prompt"].map(letters))
    return indices, texts


def letters(text: str) -> str:
    """A text without what may differ between two copies of it: case, spaces and punctuation."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


# What a completion begins with where no space goes before it: a stop or a closing mark; a quotation mark that no word
# touches; the apostrophe of a contraction; a hyphen or slash that a word touches.
_BELONGS_TO_THE_PROMPT = re.compile(
    r"""[,.;:!?%…)\]}”»]|["'’]++(?=$|[\s,.;:!?…)\]}”»–—-])|['’](?:s|t|re|ve|ll|d|m)\b|[-–—/]+\w"""
)

# What a prompt ends in where no space goes after it: an opening bracket or quotation mark; a hyphen or slash that
# touches a word.
_AWAITS_A_WORD = re.compile(r"""[(\[{“‘«]$|(?:^|[\s(\[{“‘«–—-])["']+$|\w[-–—/]$""")


def follows(prompt: str, completion: str) -> str:
    """An English completion as it follows its prompt: after a space, unless it belongs to the word before.

    A mark belongs to what it touches: a quotation mark that a word follows opens (`` "Go away"``), another one closes
    (``" he said``); a hyphen that a word follows joins (``-made``), a dash before a space stands alone (`` - he``).
    White space that the completion begins with stays. TRL splits prompt and completion at their common prefix of
    tokens, so a word that did not begin a new token would take the last token of the prompt with it.
    """
    text = completion.rstrip()
    joined = text[0].isspace() or _BELONGS_TO_THE_PROMPT.match(text) or _AWAITS_A_WORD.search(prompt)
    return text if joined else f" {text}"
