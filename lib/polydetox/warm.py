"""What the first use of a part of the library reads and keeps, done once by the forking kernel's server.

The kernels share it as read-only pages, so that a batch of notebooks reads the sentence encoder and the language models
of the detector once. Nothing here may start a thread or touch a GPU, since the server forks afterwards; and nothing
that a notebook could change may be kept.
"""

from __future__ import annotations

from polydetox.errors import UserError


def first_uses() -> None:
    """Read the embedded scorer and the language detector, as far as their packages are installed."""
    import torch

    # With more threads, torch would start its pool for the conversion of the weights.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _embedded_scorer()
        _language_detector()
    finally:
        torch.set_num_threads(threads)


def _embedded_scorer() -> None:
    from polydetox.scoring.embedded import EmbeddedScorer

    try:
        EmbeddedScorer().load()
    except UserError:
        return  # the notebook that needs it says what is missing


def _language_detector() -> None:
    from polydetox.metrics.language import detect

    try:
        # The models of a language are read when a text may be in it, and each script has languages of its own.
        detect(["a few words", "ein Wort", "несколько слов", "कुछ शब्द", "بعض الكلمات", "いくつかの言葉", "몇 마디"])
    except ImportError:
        return
