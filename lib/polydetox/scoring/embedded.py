"""The scorer of the default profile: multilingual E5-small embeddings and a logistic head, from packages alone.

How the head was trained, and how well it separates toxic from benign texts in each language, is in
the notebook ``scorer_head`` and in the metadata of ``data/embedded_head.json``. Against what else ships in packages
it is measured in ``notebooks/scorer/scorer_candidates.ipynb``; ``data/candidates.json`` keeps the figures.

It ranks well within a language, but its level differs between languages: in Korean it calls only two of eight printable
insults toxic at 0.5, though it ranks all of them above neutral sentences. Scores of two languages are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from polydetox.scoring import e5
from polydetox.scoring.base import SEVENTEEN, Score, Scorer
from polydetox.scoring.head import HEAD_FILE, Head


class EmbeddedScorer(Scorer):
    """Toxicity from a sentence embedding; nothing is downloaded. The weights are loaded when first needed.

    Args:
        head_file: another head than the one that the project ships.
    """

    id = "embedded"
    languages = SEVENTEEN  # in which it was measured
    threshold = 0.5

    def __init__(self, head_file: Path = HEAD_FILE):
        e5.weights_file()
        self._head = Head.load(head_file)
        self._weights_sha256 = str(self._head.metadata.get("weights_sha256", ""))
        self.revision = f"e5-small-q4-{self._weights_sha256[:12]}+head-{self._head.sha256[:12]}"
        self._encoder: e5.E5 | None = None

    def load(self) -> e5.E5:
        """The encoder, read when first needed."""
        if self._encoder is None:
            self._encoder = e5.installed(self._weights_sha256)
        return self._encoder

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        for positions, embeddings in self.load().batches(texts) if texts else ():
            scores = self._head.scores(embeddings).tolist()
            yield [(position, Score(value)) for position, value in zip(positions, scores, strict=True)]
