"""Artefacts: atomic writes, checked reads, manifests."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from polydetox import artifacts
from polydetox.errors import UserError


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    artifacts.write_json(file, {"a": 1})
    with pytest.raises(RuntimeError), artifacts.atomic_path(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "weights"
    with artifacts.atomic_folder(folder) as temporary:
        (temporary / "x").write_text("old")
    with pytest.raises(RuntimeError), artifacts.atomic_folder(folder) as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert (folder / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_json_holds_no_nan(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"a": np.float64("nan"), "b": [np.int64(2), float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [2, None]}


def test_parquet_errors_name_the_file_and_the_remedy(tmp_path):
    file = tmp_path / "t.parquet"
    with pytest.raises(UserError, match=r"t\.parquet: no such file"):
        artifacts.read_parquet(file)
    artifacts.write_parquet(file, pd.DataFrame({"prompt": ["a"]}))
    with pytest.raises(UserError, match=r"t\.parquet: column 'promt' is missing; did you mean 'prompt'"):
        artifacts.read_parquet(file, ["promt"])
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"t\.parquet: not a readable Parquet file.*delete it") as raised:
        artifacts.read_parquet(file)
    assert "\n" not in str(raised.value)


def test_manifest_marks_success_and_records_the_run(tmp_path):
    (tmp_path / "in.txt").write_text("x")
    stage = artifacts.Stage("s", tmp_path / "out", {"seed": 3, "n": 2})
    stage.reads(tmp_path / "in.txt")
    assert not artifacts.finished(tmp_path / "out")
    manifest = stage.finish(extra=1)
    assert artifacts.finished(tmp_path / "out")
    assert manifest["seed"] == 3 and manifest["extra"] == 1
    # sha256 of the single byte "x"
    assert next(iter(manifest["inputs"].values())).startswith("2d711642b726b04401627ca9fbac32f5")
    assert "torch" in manifest["versions"]
    artifacts.Stage("s", tmp_path / "out", {})
    assert not artifacts.finished(tmp_path / "out"), "a stage that runs again must not look done"


def test_a_secret_never_becomes_a_parameter(tmp_path):
    for name in ("hf_token", "api_key", "PASSWORD"):
        with pytest.raises(UserError, match="secret"):
            artifacts.Stage("s", tmp_path, {name: "x"})
    artifacts.Stage("s", tmp_path, {"max_new_tokens": 2, "expected_tokens": 3})


def test_folder_hash_depends_on_names_and_contents_only(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text("1")
    (tmp_path / "b" / "manifest.json").write_text("{}")
    assert artifacts.folder_sha256(tmp_path / "a") == artifacts.folder_sha256(tmp_path / "b")
    (tmp_path / "b" / "w").rename(tmp_path / "b" / "v")
    assert artifacts.folder_sha256(tmp_path / "a") != artifacts.folder_sha256(tmp_path / "b")
