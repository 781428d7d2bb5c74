"""Sentence embeddings of any checkpoint: the mean of the last hidden states of a text's tokens, as a unit vector.

``google/embeddinggemma-300m`` (Vera et al. 2025, arXiv 2509.20354) wants ``task: classification | query: `` before
each. Its two layers behind the mean, which are linear as a head is, are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from polydetox.core.artifacts import folder_sha256
from polydetox.models.checkpoints import device, weights_of
from polydetox.scoring.base import without_surrogates
from polydetox.scoring.embedded import same_length

MAX_TOKENS, BATCH_TOKENS = 512, 2048


class CheckpointEncoder:
    """The encoder of a folder or a Hub id; each text follows ``prefix``."""

    def __init__(self, checkpoint: str, revision: str = "", prefix: str = ""):
        import torch
        from transformers import AutoModel, AutoTokenizer

        weights = weights_of(checkpoint, revision=revision or None)
        self.sha256, self.prefix = folder_sha256(weights), prefix
        self._device = device()
        self._tokenizer = AutoTokenizer.from_pretrained(weights)
        self._model = AutoModel.from_pretrained(weights, dtype=torch.float32).eval().to(self._device)

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Embed texts, cut at 512 tokens; yield (positions, float32 vectors ``(len(positions), dimension)``)."""
        import torch

        given = [self.prefix + without_surrogates(text) for text in texts]
        tokens = self._tokenizer(given, truncation=True, max_length=MAX_TOKENS)["input_ids"] if given else []
        for batch in same_length(tokens, BATCH_TOKENS):
            ids = torch.tensor([tokens[position] for position in batch], device=self._device)  # (batch, length)
            with torch.inference_mode():
                hidden = self._model(ids).last_hidden_state  # (batch, length, dimension)
                embeddings = torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1).cpu().numpy()
            yield batch, embeddings
