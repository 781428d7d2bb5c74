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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run notebooks, which keep all cores busy, take turns with those that often wait."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    notebooks = sorted((file for file in files if file.parent.name == "notebooks"), reverse=True)
    others = [file for file in files if file not in notebooks]
    turn = len(others) // (2 * len(notebooks)) if notebooks else 0  # others after each, so that none is begun late
    order = [each for number, file in enumerate(notebooks) for each in (file, *others[number * turn :][:turn])]
    items[:] = [item for file in dict.fromkeys([*order, *others]) for item in files[file]]


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
