"""The differences from the published code: every row whole, every setting real and set in the profile ``paper``."""

from __future__ import annotations

import pytest

from polydetox import workflow
from polydetox.core.parameters import declaration
from polydetox.core.yaml_files import read_yaml
from tiny import CHECKOUT

ROWS = read_yaml(CHECKOUT / "book/reference/fidelity.yaml")
FIELDS = ["step", "paper", "file", "published", "here", "setting", "effect", "test"]


def test_every_row_is_filled():
    assert len(ROWS) > 10
    for row in ROWS:
        assert list(row) == FIELDS, row["step"]
        assert all(value == "none" or value for value in row.values()), row["step"]


@pytest.fixture(scope="module")
def paper():
    return workflow.load("paper")


@pytest.mark.parametrize("row", [row for row in ROWS if row["setting"] != "none"], ids=lambda row: row["step"])
def test_profile_paper_follows_the_published_code(row, paper):
    stage, parameter = row["setting"]["name"].split(".")
    default = declaration(stage).model_fields[parameter].default
    assert default != row["setting"]["value"], "the default is the published choice: no difference to tell of"
    jobs = [job.resolved() for job in paper.jobs.values() if job.stage == stage]
    assert jobs and {job[parameter] for job in jobs} == {row["setting"]["value"]}


@pytest.mark.parametrize("row", [row for row in ROWS if row["test"] != "none"], ids=lambda row: row["step"])
def test_what_holds_a_row_is_there(row):
    file, name = row["test"].split("::")
    assert f"def {name}(" in (CHECKOUT / "tests/unit" / file).read_text("utf-8")
