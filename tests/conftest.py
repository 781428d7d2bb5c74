"""Settings and fixtures that every test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tiny import FAMILIES, make_checkout, tiny_model, tiny_tokenizer

# Imports make many objects that stay; at Python's threshold a sixth of their time goes into looking for garbage.
gc.set_threshold(50_000, 10, 10)

# One thread a test process: tiny matrices only lose time to more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The shapes that pure tensor functions declare are checked whenever a test calls them.
install_import_hook(
    [
        "polydetox.generation.attention",
        "polydetox.generation.sampling",
        "polydetox.mechanism.architectures",
        "polydetox.mechanism.decoding",
        "polydetox.mechanism.neurons",
        "polydetox.mechanism.probe",
        "polydetox.mechanism.representations",
        "polydetox.metrics",
        "polydetox.attribute_control.nado",
    ],
    "beartype.beartype",
)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A saved checkpoint of each family, with one tokenizer."""
    tokenizer = tiny_tokenizer()
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("models") / family
        tiny_model(family, len(tokenizer)).save_pretrained(folders[family])
        tokenizer.save_pretrained(folders[family])
    return folders


@pytest.fixture
def checkout(tmp_path, tiny_checkpoints, monkeypatch) -> Path:
    """A fresh checkout with a tiny model; paths of the library point into it."""
    from polydetox.core import paths

    folder = make_checkout(tmp_path / "checkout", tiny_checkpoints["llama"])
    monkeypatch.setenv("POLYDETOX_ROOT", str(folder))
    monkeypatch.delenv("POLYDETOX_RUNS", raising=False)
    monkeypatch.chdir(folder)
    paths.root.cache_clear()
    yield folder
    paths.root.cache_clear()
