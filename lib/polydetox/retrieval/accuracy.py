"""Bilingual sentence retrieval: true nearest-neighbour accuracy, and what the authors' script prints (section 5)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage
from polydetox.data import local_folder, project_prompts
from polydetox.errors import UserError
from polydetox.interp.representations import mean_pooled
from polydetox.languages import LANGUAGES
from polydetox.models.checkpoints import checkpoint_of, provenance
from polydetox.params import RetrievalParameters, load_model

if TYPE_CHECKING:
    from jaxtyping import Float

ENGLISH = "en"


def cosines(
    left: Float[np.ndarray, "sentences hidden"], right: Float[np.ndarray, "sentences hidden"]
) -> Float[np.ndarray, "sentences sentences"]:
    """The cosine of every sentence on the left to every one on the right."""

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)

    return unit(left.astype(np.float64)) @ unit(right.astype(np.float64)).T


def retrieval_figures(
    english: Float[np.ndarray, "sentences hidden"], other: Float[np.ndarray, "sentences hidden"]
) -> dict[str, float]:
    """How well translations find each other at one depth; row i of both is the same sentence.

    ``to_english`` and ``from_english`` are the shares of sentences whose nearest neighbour by cosine on the other side
    is their translation (ties go to the first), ``accuracy`` their mean. ``aligned_cosine`` is the mean cosine of the
    aligned pairs, which the authors' script prints under the name accuracy; ``other_cosine`` that of all other pairs.
    """
    matrix = cosines(english, other)
    index = np.arange(len(matrix))
    from_english = float((matrix.argmax(axis=1) == index).mean())
    to_english = float((matrix.argmax(axis=0) == index).mean())
    aligned = float(np.diag(matrix).mean())
    pairs = matrix.size - len(matrix)
    return {
        "from_english": from_english,
        "to_english": to_english,
        "accuracy": (from_english + to_english) / 2.0,
        "aligned_cosine": aligned,
        "other_cosine": float((matrix.sum() - np.trace(matrix)) / pairs) if pairs else float("nan"),
    }


def parallel_sentences(settings: RetrievalParameters, language: str) -> list[str]:
    """The sentences of one language, in the order that all languages share."""
    if settings.sentences == "project":
        sentences = list(project_prompts(language)["prompt"])
    else:
        sentences = _read_parallel(local_folder(settings.folder), language)
    return sentences[: settings.limit] if settings.limit else sentences


def _read_parallel(folder: Path, language: str) -> list[str]:
    """One file a language, by its code (``de.txt``: a line a sentence; ``de.json``: a list of sentences)."""
    for name in (f"{language}.txt", f"{language}.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            text = file.read_text("utf-8")
            sentences = json.loads(text) if file.suffix == ".json" else text.splitlines()
        except ValueError as error:
            raise UserError(f"{paths.relative(file)}: not readable ({str(error)[:100]})") from None
        if not isinstance(sentences, list) or not all(isinstance(row, str) and row.strip() for row in sentences):
            raise UserError(f"{paths.relative(file)}: expected one sentence after the other, none of them empty")
        return sentences
    raise UserError(
        f"{folder}: no {language}.txt and no {language}.json; 'retrieval: folder' should hold one file a language, "
        "line i of each a translation of line i of the others (see `polydetox data`)"
    )


def retrieval_by_layer(settings: RetrievalParameters, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Retrieval between English and one language at every layer of the untuned model.

    English is computed once and shared by all languages of a run. Returns a row a layer (``layer`` from 1, and the
    figures of :func:`retrieval_figures`), and their means over layers.
    """
    weights = checkpoint_of(settings.profile, settings.model)
    stage.reads(provenance(weights))
    model = load_model(settings.model)
    texts = {language: parallel_sentences(settings, language) for language in (ENGLISH, settings.lang)}
    if len(texts[ENGLISH]) != len(texts[settings.lang]):
        raise UserError(
            f"retrieval: {len(texts[ENGLISH])} sentences in English and {len(texts[settings.lang])} in "
            f"{LANGUAGES[settings.lang]}; the files must be parallel, line by line"
        )
    pooled = {}
    for language, sentences in texts.items():
        shared = paths.retrieval(settings.profile, model.name, language) / "representations.safetensors"
        own = stage.folder / "representations.safetensors"
        pooled[language] = mean_pooled(weights, sentences, "all", shared if language == ENGLISH else own,
                                       dtype=model.dtype, batch_size=settings.batch_size)  # fmt: skip
    english, other = pooled[ENGLISH], pooled[settings.lang]
    rows = [{"layer": layer + 1, **retrieval_figures(english[:, layer], other[:, layer])}
            for layer in range(english.shape[1])]  # fmt: skip
    table = pd.DataFrame(rows)
    best = table.loc[table["accuracy"].idxmax()]
    metrics = {
        "sentences": len(texts[ENGLISH]),
        "layers": len(table),
        **{name: float(table[name].mean()) for name in table.columns if name != "layer"},
        "best_layer": int(best["layer"]),
        "best_accuracy": float(best["accuracy"]),
    }
    return table, metrics
