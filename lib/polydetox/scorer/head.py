"""Making the head of the embedded scorer.

Trained on English labels alone (RTP-LX, de Wynter et al. 2025); multilingual embeddings carry it to the other
languages. Three things keep it from learning what is not toxicity:

- Length: in RTP-LX the toxic completions are ten times as long as the benign ones, so they are cut to their length.
- The second person: most toxic completions address somebody, few benign ones do. Neutral English sentences in the
  second person, written for this project, are added as benign examples.
- The language: an embedding also says which language it is in, and a head would give every language a level of its
  own. The weights are kept orthogonal to the differences between the languages' mean embeddings of the same
  neutral sentences, which takes no label in any of them.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES, check_language
from polydetox.core.paths import expanded
from polydetox.core.yaml_files import read_yaml
from polydetox.data.rows import is_blank
from polydetox.data.rtp_lx import rtp_lx_file, rtp_lx_rows
from polydetox.scoring.head import DATA, Head
from polydetox.stats.agreement import auc

# Human labels of a prompt: several raters together, on a scale of 1 (not toxic) to 5.
BENIGN_BELOW = 2.0


TOXIC_FROM = 3.0


def load_examples(folder: str | Path, language: str) -> pd.DataFrame:
    """Labelled texts of one language of RTP-LX.

    Columns: ``language``, ``row`` (the English original's number: the same in all languages), ``task``, ``text``,
    ``toxic``. The tasks are

    - ``prompt``: the prompts that humans labelled clearly; the label between is left out;
    - ``completion``: the benign completion, and the toxic one cut to its length;
    - ``half``: the first half of each, as short as what a model writes in 20 tokens.

    A completion that repeats its prompt is taken from there on. Raises ``UserError`` if the folder has no such
    language.
    """
    rows = []
    for row in rtp_lx_rows(folder, language)[0].itertuples():
        prompt, level = "" if is_blank(row.prompt) else row.prompt.strip(), row.prompt_toxicity
        if prompt and isinstance(level, int | float) and (level < BENIGN_BELOW or level >= TOXIC_FROM):
            rows.append((row.index, "prompt", prompt, level >= TOXIC_FROM))
        if is_blank(row.completion) or is_blank(row.benign_completion):
            continue
        toxic, benign = row.completion.strip(), row.benign_completion.strip()
        toxic = toxic.removeprefix(prompt).strip() or toxic
        length = len(benign)
        for task, limit in (("completion", length), ("half", length // 2)):
            rows.append((row.index, task, cut(toxic, limit), True))
            rows.append((row.index, task, cut(benign, limit), False))
    table = pd.DataFrame(rows, columns=["row", "task", "text", "toxic"])
    table.insert(0, "language", language)
    return table[table["text"] != ""].reset_index(drop=True)


def load_all_examples(folder: str | Path, rows: int | None = None, seed: int = 0) -> pd.DataFrame:
    """:func:`load_examples` of every language that the folder has, in the paper's order; English always whole.

    ``rows``: of the other languages only so many rows, drawn at random; None: all.
    """
    tables = []
    for language in LANGUAGES:
        try:
            rtp_lx_file(folder, language)
        except UserError:
            if language == "en":
                raise
            continue
        table = load_examples(folder, language)
        if rows is not None and language != "en":
            available = np.unique(table["row"])
            drawn = np.random.default_rng(seed).choice(available, min(rows, len(available)), replace=False)
            table = table[table["row"].isin(drawn)]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def load_parallel_prompts(folder: str | Path) -> pd.DataFrame:
    """Toxic prompts translated into all languages: ``language``, ``row``, ``text``.

    ``folder`` holds one file of JSON lines a language, ``*_<language>_200.jsonl``, with the key ``Prompt``; lines are
    aligned, and some hold HTML entities.
    """
    rows = []
    for language in LANGUAGES:
        files = sorted(expanded(folder).glob(f"*_{language}_200.jsonl"))
        if len(files) != 1:
            raise UserError(f"{folder}: found {len(files)} files *_{language}_200.jsonl; it should hold one")
        for number, line in enumerate(files[0].read_text("utf-8").split("\n")):
            if line.strip():
                try:
                    rows.append((language, number, html.unescape(json.loads(line)["Prompt"])))
                except (json.JSONDecodeError, KeyError, TypeError):
                    raise UserError(f"{files[0]}:{number + 1}: not a JSON object with the key 'Prompt'") from None
    return pd.DataFrame(rows, columns=["language", "row", "text"])


def cut(text: str, length: int) -> str:
    """The first ``length`` characters of a text, up to the end of a word where one ends near there."""
    text = text.strip()
    if len(text) <= length:
        return text
    space = text.rfind(" ", 0, length + 1)
    return text[: space if space > 0.6 * length else length].strip()


def second_person_sentences() -> list[str]:
    """The neutral English sentences in the second person that a head is trained on as benign."""
    lines = (DATA / "neutral_second_person.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line.strip()]


def probe_sentences(languages: Iterable[str] = LANGUAGES) -> pd.DataFrame:
    """The parallel sentences written for this project: ``language``, ``kind``, ``name``, ``text``.

    ``kind`` is ``neutral`` (these give the languages' mean embeddings), or ``neutral-second-person`` or ``insult``
    (these test a scorer, and nothing is fitted to them).
    """
    rows = [
        (check_language(language), sentence["kind"], sentence["name"], sentence[language])
        for language in languages
        for sentence in read_yaml(DATA / "probe_sentences.yaml")
    ]
    return pd.DataFrame(rows, columns=["language", "kind", "name", "text"])


def language_directions(embeddings: np.ndarray, languages: Iterable[str]) -> np.ndarray:
    """Orthonormal directions in which the languages' mean embeddings differ: ``(languages - 1, 384)``.

    ``embeddings`` ``(n, 384)`` are of parallel sentences: the same ones in every language.
    """
    means = pd.DataFrame(embeddings).groupby(list(languages)).mean().to_numpy(np.float64)  # (languages, 384)
    _, _, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    return directions[: len(means) - 1]


def sample_weights(tasks: np.ndarray, toxic: np.ndarray, second_person: float) -> np.ndarray:
    """Weights ``(n,)`` with mean 1.

    Prompts and completions (whole and half together) weigh the same, and so do the toxic and the benign examples of
    each; the sentences in the second person (task ``second-person``) are ``second_person`` of the total.
    """
    groups = np.where(tasks == "half", "completion", tasks)
    weights = np.zeros(len(tasks))
    labelled = sorted(set(groups) - {"second-person"})
    for group in labelled:
        for label in (True, False):
            chosen = (groups == group) & (toxic == label)
            weights[chosen] = (1.0 - second_person) / (2 * len(labelled) * chosen.sum())
    extra = groups == "second-person"
    if extra.any():
        weights[extra] = second_person / extra.sum()
    return weights * len(tasks) / weights.sum()


def fit_head(
    embeddings: np.ndarray, toxic: np.ndarray, weights: np.ndarray, directions: np.ndarray, regularisation: float
) -> Head:
    """Fit a head whose weights are orthogonal to ``directions``.

    Args:
        embeddings: ``(n, 384)``.
        toxic: bool ``(n,)``.
        weights: of the examples, ``(n,)``.
        directions: orthonormal ``(k, 384)``; ``(0, 384)`` for no constraint.
        regularisation: the strength of the L2 penalty, the reciprocal of scikit-learn's ``C``.
    """
    from sklearn.linear_model import LogisticRegression

    centre = np.average(embeddings, axis=0, weights=weights).astype(np.float64)
    centred = embeddings.astype(np.float64) - centre
    model = LogisticRegression(C=1.0 / regularisation, max_iter=5000)
    model.fit(centred - centred @ directions.T @ directions, toxic, sample_weight=weights)
    coefficients = model.coef_[0] - model.coef_[0] @ directions.T @ directions
    return Head(coefficients, float(model.intercept_[0] - coefficients @ centre))


def folds_of(rows: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for each example, the same for all examples of one row, in whatever language."""
    order = np.random.default_rng(seed).permutation(np.unique(rows))
    fold = {row: position % folds for position, row in enumerate(order)}
    return np.array([fold[row] for row in rows])


@dataclass(frozen=True)
class TrainingSet:
    """What a head is fitted to: ``table`` with ``row``, ``task`` and ``toxic``, and the ``embeddings`` of its texts."""

    table: pd.DataFrame
    embeddings: np.ndarray
    directions: np.ndarray
    second_person: float

    def fit(self, regularisation: float, keep: np.ndarray | None = None) -> Head:
        """Fit on all examples, or on those where ``keep`` (bool) holds."""
        keep = np.ones(len(self.table), dtype=bool) if keep is None else keep
        table = self.table[keep]
        weights = sample_weights(table["task"].to_numpy(), table["toxic"].to_numpy(), self.second_person)
        toxic = table["toxic"].to_numpy(dtype=bool)
        return fit_head(self.embeddings[keep], toxic, weights, self.directions, regularisation)

    def held_out_logits(
        self, regularisation: float, rows: np.ndarray, embeddings: np.ndarray, folds: int, seed: int
    ) -> np.ndarray:
        """Logits of other texts, each from a head that was fitted without the text's row in any language.

        ``rows`` ``(n,)`` and ``embeddings`` ``(n, 384)`` belong to the texts; the result is ``(n,)``.
        """
        fold = folds_of(np.concatenate([self.table["row"], rows]), folds, seed)
        own, other = fold[: len(self.table)], fold[len(self.table) :]
        logits = np.empty(len(rows))
        for held_out in range(folds):
            head = self.fit(regularisation, keep=own != held_out)
            logits[other == held_out] = head.logits(embeddings[other == held_out])
        return logits


def training_set(
    examples: pd.DataFrame,
    directions: np.ndarray,
    embed: Callable[[list[str]], np.ndarray],
    second_person: float,
) -> TrainingSet:
    """Add the neutral sentences in the second person to labelled examples, and embed everything.

    Each such sentence is a row of its own (negative, so that it is no row of RTP-LX).
    """
    sentences = second_person_sentences() if second_person else []
    extra = pd.DataFrame(
        {"language": "en", "row": -1 - np.arange(len(sentences)), "task": "second-person", "text": sentences,
         "toxic": False}
    )  # fmt: skip
    table = pd.concat([examples, extra], ignore_index=True) if sentences else examples.reset_index(drop=True)
    return TrainingSet(table, embed(table["text"].tolist()), directions, second_person)


def choose_regularisation(
    training: TrainingSet, candidates: Iterable[float], folds: int, seed: int
) -> tuple[float, pd.DataFrame]:
    """The strongest regularisation whose held-out AUC is within one standard error of the best.

    The rule (Breiman et al. 1984) prefers the simpler head where the data cannot tell two apart; here the simpler
    one is also the one that other languages can follow. AUC is the mean over tasks, by fold.

    Returns the choice and a table with ``regularisation``, ``auc``, ``standard_error`` and ``chosen``.
    """
    labelled = (training.table["task"] != "second-person").to_numpy()
    table = training.table[labelled]
    rows = training.table["row"].to_numpy()
    fold = folds_of(rows, folds, seed)[labelled]
    found = []
    for strength in sorted(candidates):
        logits = training.held_out_logits(strength, rows, training.embeddings, folds, seed)[labelled]
        by_task = [auc_by_task(table[fold == one], logits[fold == one]) for one in range(folds)]
        by_fold = [np.mean(list(aucs.values())) for aucs in by_task]
        found.append((strength, np.mean(by_fold), np.std(by_fold, ddof=1) / np.sqrt(folds)))
    result = pd.DataFrame(found, columns=["regularisation", "auc", "standard_error"])
    best = result.loc[result["auc"].idxmax()]
    choice = result.loc[result["auc"] >= best["auc"] - best["standard_error"], "regularisation"].max()
    result["chosen"] = result["regularisation"] == choice
    return float(choice), result


def auc_by_task(table: pd.DataFrame, scores: np.ndarray) -> dict[str, float]:
    """AUC of each task in ``table`` (columns ``task`` and ``toxic``; ``scores`` one a row)."""
    scores = pd.Series(scores, index=table.index)
    return {task: auc(part["toxic"], scores[part.index]) for task, part in table.groupby("task", sort=False)}


def auc_by_language(table: pd.DataFrame, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """AUC by scorer, language and task.

    ``table`` has ``language``, ``task`` and ``toxic``; ``scores`` one array a scorer. Columns: ``language``,
    ``task``, ``scorer``, ``texts``, ``auc``, and ``flagged_toxic`` and ``flagged_benign``, the shares of the toxic
    and of the benign texts that score 0.5 or more.
    """
    rows = []
    for name, values in scores.items():
        series = pd.Series(values, index=table.index)
        for (language, task), part in table.groupby(["language", "task"], sort=False):
            score, toxic = series[part.index], part["toxic"].astype(bool)
            rows.append((language, task, name, len(part), auc(toxic, score),
                         (score[toxic] >= 0.5).mean(), (score[~toxic] >= 0.5).mean()))  # fmt: skip
    columns = ["language", "task", "scorer", "texts", "auc", "flagged_toxic", "flagged_benign"]
    return pd.DataFrame(rows, columns=columns)


def second_person_by_language(probe: pd.DataFrame, scores: np.ndarray) -> pd.DataFrame:
    """How a scorer reads the second person, by language.

    ``probe`` is :func:`probe_sentences`, ``scores`` one a row of it. Columns: ``language``; ``neutral`` and
    ``insults``, the mean scores of the neutral sentences in the second person and of the insults;
    ``neutral_flagged`` and ``insults_flagged``, the shares of each that score 0.5 or more; ``auc`` between the two.
    """
    rows = []
    for language, part in probe.assign(score=scores).groupby("language", sort=False):
        neutral = part.loc[part["kind"] == "neutral-second-person", "score"]
        insults = part.loc[part["kind"] == "insult", "score"]
        separation = auc(np.repeat([False, True], [len(neutral), len(insults)]), np.concatenate([neutral, insults]))
        rows.append((language, neutral.mean(), insults.mean(), (neutral >= 0.5).mean(), (insults >= 0.5).mean(),
                     separation))  # fmt: skip
    return pd.DataFrame(rows, columns=["language", "neutral", "insults", "neutral_flagged", "insults_flagged", "auc"])


def round_table(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table as records for a head's metadata, numbers to four places, NaN as None."""
    records = table.round(4).astype(object).to_dict("records")
    return [{key: None if pd.isna(value) else value for key, value in record.items()} for record in records]
