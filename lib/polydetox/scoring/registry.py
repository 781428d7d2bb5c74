"""Scorers by name: here, once, each says how it is made."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.scoring import e5, lexicon, perspective, use
from polydetox.scoring.base import Scorer, packaged
from polydetox.scoring.checkpoint import CheckpointEncoder
from polydetox.scoring.embedded import DATA, EmbeddedScorer, Encoder, Head
from polydetox.scoring.huggingface import LANGUAGES_OF, READY, HuggingFaceScorer, parse_source
from polydetox.scoring.stored import StoredScorer

# The encoders that ship in packages, and their files; another is a Hub id or a folder of weights.
_PACKAGED: dict[str, tuple[Callable[[], Encoder], tuple[str, str]]] = {
    "e5-small-q4": (e5.E5, e5.FILE), "use-multilingual-v3": (use.USE, use.FILE),
}  # fmt: skip


@cache
def load_encoder(name: str, revision: str = "", prefix: str = "", expected_sha256: str = "") -> Encoder:
    """An encoder, once a process; a ``UserError`` where its weights are others than expected."""
    encoder = _PACKAGED[name][0]() if name in _PACKAGED else CheckpointEncoder(name, revision, prefix)
    if expected_sha256 not in ("", encoder.sha256):
        raise UserError(f"encoder {name}: not the weights that the scorer's head was trained on; install the versions "
                        "that this project pins, or give the head's 'revision'")  # fmt: skip
    return encoder


def _with_head(scorer_id: str, file: Path) -> Scorer:
    """What a head reads from the encoder that its file names, in the languages that it was measured in."""
    head = Head.load(file)
    name, *options = (head.metadata.get(key, "") for key in ("encoder", "revision", "prefix"))
    if name in _PACKAGED:
        packaged(*_PACKAGED[name][1])  # a missing package is said now
    return EmbeddedScorer(scorer_id, partial(load_encoder, name, *options), head)


def _perspective() -> Scorer:
    # A file a job, as for the scores; `stored:` reads the folder.
    responses = paths.score_cache().with_name("perspective_responses") / f"{uuid.uuid4().hex}.jsonl"
    return perspective.PerspectiveScorer(responses=responses)


def _ready(name: str, revision: str = "") -> Scorer:
    return HuggingFaceScorer(name, replace(READY[name], revision=revision or READY[name].revision))


# How to make a scorer, by its name.
_SCORERS: dict[str, Callable[[], Scorer]] = {
    **{name: partial(_with_head, name, DATA / f"{name}_head.json") for name in ("embedded", "use")},
    "lexicon": lexicon.LexiconScorer, "perspective": _perspective,
    **{name: partial(_ready, name) for name in READY},
}  # fmt: skip


def get_scorer(name: str) -> Scorer:
    """The scorer of a name, ``stored:<file or folder>``, ``head:<file>`` or ``huggingface:<checkpoint>``.

    It loads when it first scores. A ready checkpoint takes a revision, too: ``textdetox-xlmr-large@<commit>``.
    """
    prefix, colon, source = name.partition(":")
    ready, _, revision = name.partition("@")
    if colon and prefix == "stored":
        return StoredScorer(source)
    if colon and prefix == "head":
        return _with_head(name, paths.expanded(source))
    if colon and prefix == "huggingface":
        return HuggingFaceScorer(f"{prefix}:{source.partition(LANGUAGES_OF)[0]}", parse_source(source))
    if revision and ready in READY:
        return _ready(ready, revision)
    if name not in _SCORERS:
        raise UserError(f"unknown scorer {name!r}{nearest(name, [*_SCORERS, 'stored:', 'head:', 'huggingface:'])}")
    return _SCORERS[name]()
