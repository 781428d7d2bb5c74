"""Labelled texts as short as continuations, and how well a scorer separates the toxic ones in each language.

In RTP-LX (de Wynter et al. 2025) the toxic completions are ten times as long as the benign ones, so they are cut to
their length: a scorer that is trained or measured on them cannot go by length.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polydetox.core.errors import DataNotFound
from polydetox.core.languages import LANGUAGES
from polydetox.core.yaml_files import read_yaml
from polydetox.data.rows import is_blank
from polydetox.data.rtp_lx import rtp_lx_rows
from polydetox.scoring.embedded import DATA
from polydetox.stats.agreement import auc

# Human labels of a prompt: several raters together, on a scale of 1 (not toxic) to 5.
BENIGN_BELOW, TOXIC_FROM = 2.0, 3.0


def load_examples(folder: str | Path, language: str) -> pd.DataFrame:
    """Labelled texts of one language of RTP-LX.

    Columns: ``language``, ``row`` (the English original's number: the same in all languages), ``task``, ``text``,
    ``toxic``. The tasks are

    - ``prompt``: the prompts that humans labelled clearly; those between are skipped;
    - ``completion``: the benign completion, and the toxic one cut to its length;
    - ``half``: the first half of each, as short as what a model writes in 20 tokens.

    A completion that repeats its prompt is taken from there on. Raises ``UserError`` if the folder has no such
    language.
    """
    rows = []
    for row in rtp_lx_rows(folder, language)[0].itertuples():
        prompt, level = "" if is_blank(row.prompt) else row.prompt.strip(), row.prompt_toxicity
        if prompt and isinstance(level, int | float) and (level < BENIGN_BELOW or level >= TOXIC_FROM):
            rows.append((language, row.index, "prompt", prompt, level >= TOXIC_FROM))
        if is_blank(row.completion) or is_blank(row.benign_completion):
            continue
        toxic, benign = row.completion.strip(), row.benign_completion.strip()
        toxic = toxic.removeprefix(prompt).strip() or toxic
        for task, length in (("completion", len(benign)), ("half", len(benign) // 2)):
            rows.append((language, row.index, task, cut(toxic, length), True))
            rows.append((language, row.index, task, cut(benign, length), False))
    table = pd.DataFrame(rows, columns=["language", "row", "task", "text", "toxic"])
    return table[table["text"] != ""].reset_index(drop=True)


def load_all_examples(folder: str | Path) -> pd.DataFrame:
    """:func:`load_examples` of every language that the folder has, English at least, in the paper's order."""
    tables = []
    for language in LANGUAGES:
        try:
            tables.append(load_examples(folder, language))
        except DataNotFound:
            if language == "en":
                raise
    return pd.concat(tables, ignore_index=True)


def cut(text: str, length: int) -> str:
    """The first ``length`` characters of a text, up to the end of a word where one ends near there."""
    text = text.strip()
    if len(text) <= length:
        return text
    space = text.rfind(" ", 0, length + 1)
    return text[: space if space > 0.6 * length else length].strip()


def probe_sentences() -> pd.DataFrame:
    """The parallel sentences written for this project: ``language``, ``kind``, ``name``, ``text``.

    ``kind`` is ``neutral`` (these give the languages' mean embeddings), or ``neutral-second-person`` or ``insult``
    (these test a scorer, and nothing is fitted to them).
    """
    sentences = read_yaml(DATA / "probe_sentences.yaml")
    rows = [(language, sentence["kind"], sentence["name"], sentence[language])
            for language in LANGUAGES for sentence in sentences]  # fmt: skip
    return pd.DataFrame(rows, columns=["language", "kind", "name", "text"])


def auc_by_language(table: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """AUC of a scorer by language and task.

    ``table`` has ``language``, ``task``, ``toxic`` and ``score``. Columns: ``language``, ``task``, ``scorer``,
    ``texts``, ``auc``, and ``flagged_toxic`` and ``flagged_benign``, the fractions of the toxic and of the benign
    texts that score 0.5 or more.
    """
    rows = []
    for (language, task), part in table.groupby(["language", "task"], sort=False):
        toxic, flagged = part["toxic"].astype(bool), part["score"] >= 0.5
        rows.append({"language": language, "task": task, "scorer": scorer, "texts": len(part),
                     "auc": auc(toxic, part["score"]), "flagged_toxic": flagged[toxic].mean(),
                     "flagged_benign": flagged[~toxic].mean()})  # fmt: skip
    return pd.DataFrame(rows)


def second_person_by_language(probe: pd.DataFrame) -> pd.DataFrame:
    """How a scorer reads the second person, by language.

    ``probe`` is :func:`probe_sentences` with ``score``. Columns: ``language``; ``neutral`` and ``insults``, the mean
    scores of the neutral sentences in the second person and of the insults; ``neutral_flagged`` and
    ``insults_flagged``, the fractions of each that score 0.5 or more; ``auc`` between the two.
    """
    rows = []
    for language, part in probe[probe["kind"] != "neutral"].groupby("language", sort=False):
        insult, score = part["kind"] == "insult", part["score"]
        rows.append({"language": language, "neutral": score[~insult].mean(), "insults": score[insult].mean(),
                     "neutral_flagged": (score[~insult] >= 0.5).mean(),
                     "insults_flagged": (score[insult] >= 0.5).mean(), "auc": auc(insult, score)})  # fmt: skip
    return pd.DataFrame(rows)
