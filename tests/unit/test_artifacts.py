"""Artefacts: atomic writes, checked reads, manifests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from polydetox.core import artifacts, paths
from polydetox.core.errors import UserError
from polydetox.data import catalogue
from tiny import CHECKOUT


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


def test_others_read_what_the_umask_lets_them(tmp_path):
    """Also what safetensors writes, as a file of its owner alone, and links stay as they are."""
    aside = tmp_path / "aside"
    aside.touch(mode=0o600)
    before = os.umask(0o027)
    try:
        artifacts.write_json(tmp_path / "a.json", {})
        with artifacts.atomic_folder(tmp_path / "weights") as temporary:
            (temporary / "below").mkdir(mode=0o700)
            save_file({"a": np.zeros(2)}, temporary / "below/model.safetensors")
            (temporary / "link").symlink_to(aside)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert modes == {"aside": "0o600", "a.json": "0o640", "weights": "0o750", "below": "0o750",
                     "model.safetensors": "0o640"}  # fmt: skip


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


@pytest.fixture(params=["inside", "elsewhere", "linked"])
def runs_place(request, tmp_path, monkeypatch):
    """A checkout whose runs/ lies in it, is named by POLYDETOX_RUNS, or is a link to a folder elsewhere."""
    root = tmp_path / "checkout"
    for name in ("params", "notebooks", "scratch"):
        (root / name).mkdir(parents=True)
    monkeypatch.setenv("POLYDETOX_ROOT", str(root))
    monkeypatch.delenv("POLYDETOX_RUNS", raising=False)
    if request.param == "elsewhere":
        monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "scratch"))
    if request.param == "linked":
        (tmp_path / "scratch").mkdir()
        (root / "runs").symlink_to(tmp_path / "scratch")
    paths.root.cache_clear()
    yield root
    paths.root.cache_clear()


def test_every_input_is_in_the_manifest_wherever_runs_lies(runs_place, tmp_path):
    files = [paths.profile_run("p") / "m" / variant / "evaluate" / language / "metrics.json"
             for variant in ("base", "dpo") for language in ("de", "en")]  # fmt: skip
    files.append(runs_place / "params/x.yaml")
    further = [tmp_path / "data" / name for name in ("a/train.csv", "b/train.csv", "b/c/train.csv", "other.csv")]
    # Names that those of runs/ have as well: a folder of that name, in the checkout or elsewhere.
    further.append(tmp_path / "data/runs/p/m/base/evaluate/de/metrics.json")
    for file in files + further:
        artifacts.write_json(file, {"of": str(file)})
    stage = artifacts.Stage("summary", paths.profile_run("p") / "summary/detox", {})
    for file in [*files, *further, files[0]]:
        assert stage.reads(file) == file
    stage.reads(files[1].resolve())  # the same file by another way
    names = [f"runs/p/m/{variant}/evaluate/{language}/metrics.json" for variant in ("base", "dpo")
             for language in ("de", "en")]  # fmt: skip
    names += ["params/x.yaml", "train.csv", "b/train.csv", "c/train.csv", "other.csv", "metrics.json"]
    expected = {name: artifacts.file_sha256(file) for name, file in zip(names, [*files, *further], strict=True)}
    assert stage.finish()["inputs"] == expected


def test_runs_of_the_checkout_do_not_pass_for_those_elsewhere(runs_place, tmp_path):
    other = runs_place / "runs/p/x.json"
    artifacts.write_json(other, 1)
    artifacts.write_json(paths.runs() / "p/x.json", 2)
    names = artifacts.input_names([other, paths.runs() / "p/x.json"])
    assert names[paths.runs() / "p/x.json"] == "runs/p/x.json"
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("variable", ["POLYDETOX_RUNS", "POLYDETOX_DATA", "RTP_LX"])
@pytest.mark.parametrize(("given", "wanted"), [
    ("~/a b", "home/a b"), ("$SCRATCH/x", "scratch/x"), ("x", "work/x"), ("../x", "x"), ("/dev/null", "/dev/null"),
])  # fmt: skip
def test_folders_of_the_environment_are_filled_in_at_one_place(
    runs_place, tmp_path, monkeypatch, variable, given, wanted
):
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    shutil.copy(CHECKOUT / "params/data.yaml", runs_place / "params")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv(variable, given)
    for _ in range(2):
        found = {"POLYDETOX_RUNS": paths.runs, "POLYDETOX_DATA": lambda: catalogue.place_of("rtp-lx").parent,
                 "RTP_LX": lambda: catalogue.local_path("$RTP_LX")}[variable]()  # fmt: skip
        assert found.resolve() == (tmp_path / wanted).resolve()
        catalogue.make_environment_absolute()
        monkeypatch.chdir(runs_place)  # where the command and its stages work


def test_a_home_that_is_not_there_is_named(runs_place, monkeypatch):
    monkeypatch.setenv("POLYDETOX_RUNS", "~nobody-of-this-name/runs")
    with pytest.raises(UserError, match="'~nobody-of-this-name/runs': there is no such home folder"):
        paths.runs()


def test_a_checkout_inside_another_repository_has_no_commit(tmp_path, monkeypatch):
    def git(folder, *words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)

    root = tmp_path / "thesis/polydetox"
    for name in ("params", "notebooks"):
        (root / name).mkdir(parents=True)
    monkeypatch.setenv("POLYDETOX_ROOT", str(root))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    paths.root.cache_clear()

    def recorded():
        return {name: value for name, value in artifacts.Stage("s", tmp_path / "out", {}).finish().items()
                if name.startswith("git_commit")}  # fmt: skip

    none = {"git_commit": None, "git_commit_missing":
            "the checkout is no git repository with a commit, or one of an owner whom git does not trust"}  # fmt: skip
    assert recorded() == none
    git(tmp_path / "thesis", "init", "-q", ".")
    git(tmp_path / "thesis", "commit", "-q", "--allow-empty", "-m", "thesis")
    assert recorded() == none
    git(root, "init", "-q", ".")
    assert recorded() == none
    (root / "params/x.yaml").write_text("a: 1\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "own")
    own = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "thesis/.git"))  # as within a hook of another repository
    assert recorded() == {"git_commit": own}
    (root / "params/x.yaml").write_text("a: 2\n")
    assert recorded() == {"git_commit": f"{own}+"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert recorded() == {"git_commit": None, "git_commit_missing": "git could not be run (FileNotFoundError)"}
    paths.root.cache_clear()


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


def test_a_shard_is_computed_once_for_all_that_it_depends_on(tmp_path):
    """A language that is added leaves the others as they are; other settings, inputs or texts compute again."""
    computed = []

    def shards(parameters: dict, texts: dict[str, str], given: Path | None = None) -> dict[str, str]:
        stage = artifacts.Stage("activations", tmp_path / "stage", parameters | {"languages": list(texts)})
        if given:
            stage.reads(given)

        def compute(language: str) -> pd.DataFrame:
            computed.append(language)
            return pd.DataFrame({"text": [texts[language]]})

        tables = {name: stage.shard(name, lambda name=name: compute(name), texts[name]) for name in texts}
        return {name: table.loc[0, "text"] for name, table in tables.items()}

    assert shards({"n": 1}, {"de": "eins", "zh": "一"}) == {"de": "eins", "zh": "一"}
    assert shards({"n": 1}, {"de": "eins", "zh": "一", "en": "one"})["en"] == "one"
    assert computed == ["de", "zh", "en"]
    assert shards({"n": 1}, {"de": "zwei", "zh": "一", "en": "one"})["de"] == "zwei" and computed[3:] == ["de"]
    shards({"n": 2}, {"de": "zwei", "zh": "一"})
    assert computed[4:] == ["de", "zh"]
    given = tmp_path / "sources"
    given.write_text("neurons")
    shards({"n": 2}, {"de": "zwei"}, given)
    assert computed[6:] == ["de"]
    names = sorted(file.name.split(".")[0] for file in (tmp_path / "stage/parts").iterdir())
    assert names == ["de", "en", "zh"], "what depended on other things is removed"


def test_a_folder_that_is_a_link_is_replaced_where_it_leads(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site").symlink_to("elsewhere")
    with artifacts.atomic_folder(tmp_path / "site") as folder:
        (folder / "page").write_text("new")
    assert (tmp_path / "site").is_symlink() and (tmp_path / "elsewhere/page").read_text() == "new"
