"""Preference data of data sets and of a reader's own files: pairs of completions, or single ones with a label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import AfterValidator, Field, create_model, model_validator

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.corpora import files_of
from polydetox.data.download import dataset_files
from polydetox.data.rows import Row, Skipped, is_blank, read_table, writable
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_rows

PAIR_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected"]
UNPAIRED_COLUMNS = ["prompt_id", "prompt", "completion", "label"]

# Translations lie at the same Index or, in some languages from 960 on, one further: see rtp_lx_rows.
_SHIFT = 1


def _said(value: Any) -> Any:
    """A text, or the messages of a conversation, each as its role and content."""
    if value is None or isinstance(value, str):
        return writable(value)
    try:
        messages = [(message["role"], message["content"]) for message in value]
        if messages and all(isinstance(part, str) and writable(part) == part for each in messages for part in each):
            return messages
    except (TypeError, KeyError):
        pass
    raise ValueError("should be a text, or a list of messages, each with a text as 'role' and as 'content'")


Said = Annotated[Any, AfterValidator(_said)]


class Preference(Row):
    """A prompt with two sides, or one and its label: texts or conversations, which become texts.

    Each message of a prompt is its role, a colon and its content, with an empty line between two; the role of the
    answer, and a colon, end the prompt. An answer is its content. A prompt with the column of a conversation is
    all that comes before the last message, on both sides the same.
    """

    prompt: Said

    @model_validator(mode="after")
    def _flat(self) -> Self:
        fields = type(self).model_fields
        names = [name for name in fields if name not in ("prompt", "label")]
        sides = [getattr(self, name) for name in names]
        if fields["prompt"].alias == fields[names[0]].alias:
            if not all(isinstance(side, list) for side in sides):
                raise ValueError("has no prompt: name its column, or give conversations that begin with it")
            if sides[0][:-1] != sides[-1][:-1]:
                raise ValueError("has sides that differ before their last message, so that they have no common prompt")
            self.prompt, sides = sides[0][:-1], [side[-1:] for side in sides]
        if any(isinstance(side, list) and len(side) > 1 for side in sides):
            raise ValueError("has a side of several messages beside a prompt; with 'columns: {prompt: null}' the "
                             "prompt is what both sides begin with")  # fmt: skip
        role = sides[0][0][0] if isinstance(sides[0], list) else "assistant"
        if isinstance(self.prompt, list):
            self.prompt = "\n\n".join([f"{by}: {text}" for by, text in self.prompt] + [f"{role}:"])
        for name, side in zip(names, sides, strict=True):
            setattr(self, name, side[0][1] if isinstance(side, list) else side)
        return self


def read_pairs(files: Sequence[Path], columns: Mapping[str, str | None], title: str) -> tuple[pd.DataFrame, Skipped]:
    """The pairs of some files (JSON Lines, CSV, Parquet): ``PAIR_COLUMNS``; what was skipped.

    ``columns`` says how the files name them; a ``prompt`` of None is what the conversations of both sides begin with.
    With a name for ``label`` the data are unpaired, ``UNPAIRED_COLUMNS``. Rows without one of these are skipped.
    """
    read = UNPAIRED_COLUMNS if columns.get("label") else PAIR_COLUMNS
    sides = [name for name in read[2:] if name != "label"]
    named = {name: columns[name] or columns[sides[0]] for name in read[1:]}
    fields = {name: (bool if name == "label" else Said, Field(alias=named[name])) for name in named}
    kind = create_model("Preference", __base__=Preference, __cls_kwargs__={"title": title}, **fields)  # type: ignore[call-overload]
    table, skipped = read_table(files, kind, ["prompt", *sides])
    if table.empty:
        raise UserError(f"{files[0]}: no row has all of {', '.join(map(repr, dict.fromkeys(named.values())))}")
    table["prompt"] = table["prompt"].str.rstrip()
    for side in sides:
        table[side] = [follows(prompt, text) for prompt, text in zip(table["prompt"], table[side], strict=True)]
    if "label" in table:
        table["label"] = table["label"].astype(bool)  # a table that is read holds Python's objects
    table["prompt_id"] = [f"{file}-{line - 1:05d}" for file, line in zip(table["file"], table["line"], strict=True)]
    return table[read], skipped


def toxicity_pairwise(folder: str | Path) -> tuple[pd.DataFrame, Skipped]:
    """The paper's pairs (Lee et al. 2024), in parts: the unperturbed text is chosen, the perturbed one rejected."""
    parts = sorted(local_path(folder).glob("*.jsonl")) if str(folder) else []
    if not parts:
        raise UserError(f"toxicity_pairwise: no *.jsonl in folder {str(folder)!r}; download it (see `polydetox data`) "
                        "and set 'pairs: toxicity-pairwise: folder:' in the profile or -p folder")  # fmt: skip
    columns = {"prompt": "prompt_text", "chosen": "unpert_gen_text", "rejected": "pert_gen_text"}
    return read_pairs(parts, columns, "toxicity_pairwise")


def pair_files(data: str) -> list[Path]:
    """The files of a reader's own pairs: a file, those of a folder, or ``hub:<owner>/<name>@<commit>/<files>``.

    Of a data set of the Hub the files that match are downloaded into the Hub's cache; those of a commit never change.
    """
    if not data.startswith("hub:"):
        return files_of(data, "preference data", ".jsonl", ".json", ".csv", ".parquet")
    named = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([0-9a-f]{40})/(.+)", data)
    if not named:
        raise UserError(f"{data!r}: a data set of the Hub is named hub:<owner>/<name>@<commit>/<files>, with the 40 "
                        "digits of a commit, as hub:owner/name@0123...cdef/data/train-*.parquet")  # fmt: skip
    return dataset_files(*named.groups())


def own_pairs(data: str, columns: Mapping[str, str | None]) -> tuple[pd.DataFrame, Skipped]:
    """A reader's own pairs, each once; those with the same text on both sides, which prefer nothing, are skipped."""
    pairs, skipped = read_pairs(pair_files(data), columns, "a file of preference data")
    distinct = pairs[pairs.iloc[:, 2] != pairs.iloc[:, 3]].drop_duplicates(list(pairs.columns[1:]))
    skipped.repeated = len(pairs) - len(distinct)
    check_both_sides(distinct, f"{data}: field {columns.get('label')!r}")
    return distinct.reset_index(drop=True), skipped


def check_both_sides(table: pd.DataFrame, where: str) -> None:
    """Refuse unpaired data that are all desirable or all not, from which nothing can be learnt."""
    if "label" in table and table["label"].nunique() < 2:
        found = "desirable" if table["label"].all() else "undesirable"
        raise UserError(f"{where}: all {len(table)} completions are {found}; training needs both kinds, so add others")


def check_takes_unpaired(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that need pairs, where there are single completions with labels."""
    for name, value in {"tuning": "dpo", "loss": "kto", "labels": "given", "inputs": "trl"}.items():
        if settings.get(name, value) != value:
            raise UserError(f"{where}: '{name}: {settings[name]}' needs pairs, and these data are unpaired (completion "
                            f"and label); set '{name}: {value}', or give pairs (chosen and rejected)")  # fmt: skip


def check_inputs(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse tokens that the loss of the stage dpo cannot read."""
    if settings["loss"] == "kto" and settings["inputs"] != "trl":
        raise UserError(f"{where}: 'loss: kto' takes the sides of a pair one by one, as texts; set 'inputs: trl'")


def check_room(where: str, settings: Mapping[str, Any]) -> None:
    """Refuse lengths of the stage dpo that leave no token for a completion."""
    if settings["max_prompt_length"] >= settings["max_length"]:
        raise UserError(f"{where}: 'max_prompt_length: {settings['max_prompt_length']}' leaves nothing of 'max_length: "
                        f"{settings['max_length']}' for a completion; lower the one or raise the other")  # fmt: skip


def not_evaluated(pairs: pd.DataFrame, prompts: Iterable[str]) -> pd.DataFrame:
    """The pairs whose prompt is none of some evaluated ones, nor has one as a message or paragraph.

    Case, spaces and punctuation make no difference. Fewer than two prompts left, of which training holds one out, are a
    ``UserError``, and so is only one label left of unpaired data.
    """
    evaluated = set(map(letters, prompts)) - {""}

    def leaks(prompt: str) -> bool:
        messages = re.split(r"(?:^|\n\n)\w+:(?: |$)", prompt)
        paragraphs = [part for message in messages for part in message.split("\n\n")]
        return not evaluated.isdisjoint(map(letters, [prompt, *messages, *paragraphs]))

    left = pairs[~pairs["prompt"].map(leaks).astype(bool)].reset_index(drop=True)
    if left["prompt"].nunique() < 2:
        raise UserError(f"{len(pairs) - len(left)} of {len(pairs)} pairs have a prompt that is evaluated, and the rest "
                        "have fewer than two prompts; training needs two, of which it holds one out")  # fmt: skip
    check_both_sides(left, f"{len(pairs) - len(left)} of {len(pairs)} have a prompt that is evaluated; of the rest")
    return left


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
        raise UserError(f"{rtp_lx_file(folder, 'en')}: no pairs: {skipped}, and the rest is evaluated in some language "
                        f"('prompts: limit:' is {held_out_prompts})")  # fmt: skip
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
    """A text without what may differ between two copies of it: case, spaces, punctuation and how accents are coded."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


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
