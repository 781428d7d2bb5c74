"""All languages of a model drawn by one engine, ahead of the stage that makes each language's table."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from tiny import make_checkout

TARGETS = [f"runs/tiny/tiny/base/generate/{language}/manifest.json" for language in ("en", "de")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, tiny_checkpoints):
    """Two checkouts: one in which the languages are drawn together, one in which each is drawn by itself."""
    checkouts = []
    for together in (True, False):
        folder = make_checkout(tmp_path_factory.mktemp("draw") / "checkout", tiny_checkpoints["llama"],
                               draw_together=together, trim=None, languages=["en", "de"])  # fmt: skip
        environment = os.environ | {"POLYDETOX_ROOT": str(folder), "HF_HUB_OFFLINE": "1"}
        environment.pop("POLYDETOX_RUNS", None)
        done = subprocess.run([sys.executable, "-m", "polydetox", "run", "--profile", "tiny", *TARGETS], cwd=folder,
                              env=environment, capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        checkouts.append(folder)
    return checkouts


def test_drawing_together_changes_no_continuation(drawn):
    together, apart = drawn
    assert (together / "runs/tiny/tiny/base/draw/manifest.json").is_file()
    assert not (apart / "runs/tiny/tiny/base/draw").exists()
    for target in TARGETS:
        table = target.replace("manifest.json", "continuations.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(together / table), pd.read_parquet(apart / table))


def test_the_stages_that_follow_load_no_model(drawn):
    together, _ = drawn
    manifest = json.loads((together / "runs/tiny/tiny/base/draw/manifest.json").read_text())
    tables = [pd.read_parquet(together / target.replace("manifest.json", "continuations.parquet")) for target in TARGETS]
    assert manifest["new_tokens"] == sum(int(table["tokens"].sum()) for table in tables) > 0
    for target in TARGETS:
        log = (together / target).with_name("notebook.ipynb").read_text()
        assert "Loading weights" not in log
        assert not (together / target).with_name("parts").exists()
