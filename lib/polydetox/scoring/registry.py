"""Scorers by name: here, once, each says how it is made, in which languages it may be used, and what it needs."""

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


def _not_downloaded(name: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(READY[name].source, "config.json"), str):
        return ""
    return f"{READY[name].source} is fetched from the Hugging Face Hub when first used, which needs the network"


def _not_installed(file: Callable[[], object]) -> str:
    try:
        file()
    except UserError as error:
        return str(error)
    return ""


# Name -> how to make it, and why it cannot be used here (empty if it can). A scorer from another embedding model is an
# EmbeddedScorer of its encoder and its head, with the languages in which that head was measured.
_SCORERS: dict[str, tuple[Callable[[], Scorer], Callable[[], str]]] = {
    "embedded": (_embedded, partial(_not_installed, e5.weights_file)),
    "lexicon": (lexicon.LexiconScorer, partial(_not_installed, lexicon.words_file)),
    "perspective": (_perspective, perspective.why_not),
    **{name: (partial(_ready, name), partial(_not_downloaded, name)) for name in READY},
}


def get_scorer(name: str) -> Scorer:
    """The scorer of a name, of ``stored:<file or folder>``, or of a checkpoint (``huggingface.parse_source``).

    The source is a Hub id or a folder. A ready checkpoint takes a revision, too: ``textdetox-xlmr-large@<commit>``.
    Weights are loaded only when it first scores; an unknown name is a ``UserError``.
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
    return _SCORERS[name][0]()


def available() -> dict[str, str]:
    """Of each scorer why it cannot be used here, empty where it can. Nothing is loaded."""
    return {name: why_not() for name, (_, why_not) in _SCORERS.items()}
