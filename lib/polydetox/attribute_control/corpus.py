"""Texts for the corpus of attribute-controlled fine-tuning, half toxic and half neutral."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from polydetox.core.errors import UserError
from polydetox.data import corpora
from polydetox.data.pairs import letters
from polydetox.data.rows import Skipped

COLUMNS = ["row", "prompt", "text", "domain", "toxicity", "split"]
DOMAINS = ["toxic", "neutral"]


def toxic_statements(place: Path, max_words: int, evaluated: Collection[str] = ()) -> tuple[pd.DataFrame, Skipped, int]:
    """The toxic statements of ToxiGen that belong to no evaluated prompt: ``text``, at most ``max_words`` long.

    A statement belongs to a prompt if it was generated from it, stands in its list, or has the text of one that does,
    whatever its case, spaces and punctuation. Returned with the rows that were skipped, and how many statements belong
    to evaluated prompts.
    """
    table, skipped = corpora.toxigen(place)
    toxic = table[table["toxic"]]
    if len(toxic) < 2:
        raise UserError(f"{place}: no two toxic statements there; is this ToxiGen?")
    generated = table["prompt"].isin(list(evaluated))
    held_out = {letters(line) for prompt in evaluated for line in prompt.split("\n")}
    held_out |= set(table.loc[generated, "text"].map(letters))
    belongs = (generated | table["text"].map(letters).isin(held_out - {""}))[toxic.index]
    texts = [_shortened(text, max_words) for text in toxic.loc[~belongs, "text"]]
    if len(texts) < 2:
        raise UserError(
            f"{place}: {belongs.sum()} of {len(toxic)} toxic statements belong to evaluated prompts, on which "
            "nothing is trained, so that no two are left; set 'prompts: limit:' in the profile, or lower it"
        )
    return pd.DataFrame({"text": list(dict.fromkeys(texts))}), skipped, int(belongs.sum())


def neutral_paragraphs(place: Path, max_words: int) -> tuple[pd.DataFrame, Skipped]:
    """The paragraphs of Wikitext's training split of ten words or more: ``text``, the first ``max_words`` of each."""
    table, skipped = corpora.wikitext(place)
    texts = [_shortened(_without_markers(text), max_words) for text in table["text"] if len(text.split()) >= 10]
    if len(texts) < 2:
        raise UserError(f"{place}: no two paragraphs there; is this Wikitext?")
    return pd.DataFrame({"text": list(dict.fromkeys(texts))}), skipped


def _without_markers(line: str) -> str:
    """Wikitext puts spaces around punctuation and marks those it added inside words and numbers by @."""
    line = re.sub(r" @(.)@ ", r"\1", line)
    return re.sub(r" ([,.;:!?')])", r"\1", line).replace("( ", "(")


def _shortened(text: str, max_words: int) -> str:
    return " ".join(text.split()[:max_words])
