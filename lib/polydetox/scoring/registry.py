"""Scorers by name: here, once, each says how it is made."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.scoring import e5, lexicon, perspective
from polydetox.scoring.base import SEVENTEEN, Scorer
from polydetox.scoring.embedded import EmbeddedScorer, Head
from polydetox.scoring.huggingface import LANGUAGES_OF, READY, HuggingFaceScorer, parse_source
from polydetox.scoring.stored import StoredScorer


def _embedded() -> Scorer:
    e5.weights_file()  # a missing package is said now
    return EmbeddedScorer("embedded", "e5-small-q4", e5.installed, Head.load(), SEVENTEEN)


def _perspective() -> Scorer:
    # A file a job, as for the scores; `stored:` reads the folder.
    responses = paths.score_cache().with_name("perspective_responses") / f"{uuid.uuid4().hex}.jsonl"
    return perspective.PerspectiveScorer(responses=responses)


def _ready(name: str, revision: str = "") -> Scorer:
    return HuggingFaceScorer(name, replace(READY[name], revision=revision or READY[name].revision))


# How to make a scorer, by its name. One from another embedding model is an EmbeddedScorer of its encoder and its head,
# with the languages in which that head was measured.
_SCORERS: dict[str, Callable[[], Scorer]] = {
    "embedded": _embedded, "lexicon": lexicon.LexiconScorer, "perspective": _perspective,
    **{name: partial(_ready, name) for name in READY},
}  # fmt: skip


def get_scorer(name: str) -> Scorer:
    """The scorer of a name, ``stored:<file or folder>``, or ``huggingface:<checkpoint>``, loaded when it first scores.

    A ready checkpoint takes a revision, too: ``textdetox-xlmr-large@<commit>``.
    """
    prefix, colon, source = name.partition(":")
    ready, _, revision = name.partition("@")
    if colon and prefix == "stored":
        return StoredScorer(source)
    if colon and prefix == "huggingface":
        return HuggingFaceScorer(f"{prefix}:{source.partition(LANGUAGES_OF)[0]}", parse_source(source))
    if revision and ready in READY:
        return _ready(ready, revision)
    if name not in _SCORERS:
        raise UserError(f"unknown scorer {name!r}{nearest(name, [*_SCORERS, 'stored:', 'huggingface:'])}")
    return _SCORERS[name]()
