"""The differences from the published code: every row whole, every setting real and set in the papers' profiles."""

from __future__ import annotations

import re
from datetime import date

import pandas as pd
import pytest

from polydetox import workflow
from polydetox.core.parameters import declaration
from polydetox.core.yaml_files import read_yaml
from tiny import CHECKOUT

ROWS = read_yaml(CHECKOUT / "book/reference/fidelity.yaml")
EFFECTS = pd.read_csv(CHECKOUT / "book/reference/fidelity_effects.csv", dtype={"here": float, "published": float})
FIELDS = ["step", "paper", "file", "published", "here", "setting", "effect", "test"]


def test_every_row_is_filled():
    assert len(ROWS) > 10
    for row in ROWS:
        assert list(row) == FIELDS, row["step"]
        assert all(value == "none" or value for value in row.values()), row["step"]


def test_every_measured_step_is_a_row_and_was_measured_by_the_script():
    measured = re.findall(r'^@measures\("(.+)"\)$', (CHECKOUT / "bench/fidelity.py").read_text("utf-8"), re.MULTILINE)
    assert list(EFFECTS["step"].unique()) == measured, "run bench/fidelity.py again, and commit what it writes"
    assert set(measured) <= {row["step"] for row in ROWS}


def test_every_effect_has_its_figures_and_where_they_are_from():
    assert list(EFFECTS) == ["step", "quantity", "here", "published", "n", "of", "model", "run", "commit", "date"]
    assert not EFFECTS.drop(columns="here").isna().any(axis=None)
    assert not EFFECTS[["step", "quantity", "of"]].duplicated().any()
    assert (EFFECTS["n"] > 0).all()
    assert EFFECTS["commit"].str.fullmatch("[0-9a-f]{40}").all(), "measured with changes that no commit has"
    assert all(map(date.fromisoformat, EFFECTS["date"]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["step"])
def test_every_row_has_an_effect_or_says_what_it_needs(row):
    if row["effect"] == "none":
        assert row["step"] in set(EFFECTS["step"])
    if "Not measured" in row["effect"]:
        assert row["step"] not in set(EFFECTS["step"])
        assert re.search(r"Not measured\. It needs \w+", row["effect"])


@pytest.fixture(scope="module")
def jobs():
    """Of the papers' profiles; of attribute control, that of the published algorithm, which stands beside others."""
    found = [job for name in ("paper", "paper-control") for job in workflow.load(name).jobs.values()]
    return [job for job in found if job.stage != "regularise" or job.resolved()["algorithm"] == "pr-finetune"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["setting"] != "none"], ids=lambda row: row["step"])
def test_the_papers_profiles_follow_the_published_code(row, jobs):
    stage, parameter = row["setting"]["name"].split(".")
    default = declaration(stage).model_fields[parameter].default
    assert default != row["setting"]["value"], "the default is the published choice: no difference to tell of"
    asked = [job.resolved() for job in jobs if job.stage == stage]
    assert asked and {job[parameter] for job in asked} == {row["setting"]["value"]}


@pytest.mark.parametrize("row", [row for row in ROWS if row["test"] != "none"], ids=lambda row: row["step"])
def test_what_holds_a_row_is_there(row):
    file, name = row["test"].split("::")
    assert f"def {name}(" in (CHECKOUT / "tests/unit" / file).read_text("utf-8")
