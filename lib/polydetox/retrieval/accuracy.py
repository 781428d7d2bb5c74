"""Bilingual sentence retrieval: true nearest-neighbour accuracy, and what the authors' script prints (section 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox import paths
from polydetox.artifacts import Stage
from polydetox.data import parallel_sentences
from polydetox.errors import UserError
from polydetox.interp.representations import mean_pooled
from polydetox.languages import LANGUAGES
from polydetox.models.checkpoints import checkpoint_of, provenance
from polydetox.params import RetrievalParameters, load_model

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


def representations_name(language: str) -> str:
    """The file in which a retrieval stage keeps the representations of one language."""
    return f"{language}.safetensors"


def retrieval_by_layer(settings: RetrievalParameters, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Retrieval between English and one language at every layer of the model.

    English is computed by its own job and read by those of all other languages. Returns a row a
    layer (``layer`` from 1, and the figures of :func:`retrieval_figures`), and their means over layers.
    """
    weights = checkpoint_of(settings.profile, settings.model, settings.variant)
    stage.reads(provenance(weights))
    model = load_model(settings.model)
    texts = {
        language: parallel_sentences(settings.sentences, language, settings.folder, settings.limit)
        for language in (ENGLISH, settings.lang)
    }
    if len(texts[ENGLISH]) != len(texts[settings.lang]):
        raise UserError(
            f"retrieval: {len(texts[ENGLISH])} sentences in English and {len(texts[settings.lang])} in "
            f"{LANGUAGES[settings.lang]}; the files must be parallel, line by line"
        )
    shared = paths.retrieval(settings.profile, model.name, ENGLISH) / representations_name(ENGLISH)
    pooled = {
        language: mean_pooled(weights, sentences, "all", [stage.folder / representations_name(language), shared],
                              dtype=model.dtype, batch_size=settings.batch_size)
        for language, sentences in texts.items()
    }  # fmt: skip
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
