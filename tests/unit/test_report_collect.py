"""The mathematics of before and after: values a prompt, paired bootstrap, means over languages, agreement."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import recorded

from notebook_cells import definitions
from polydetox.attribute_control.results import Control
from polydetox.core.errors import UserError
from polydetox.evaluation.tables import SIDES, main_table
from polydetox.metrics.evaluate import prompt_values
from polydetox.results import stages
from polydetox.results.published import paper_model
from polydetox.stats.bootstrap import resampled
from polydetox.stats.paired import (
    PromptSamples,
    Side,
    compare_prompts,
    comparison_row,
    mean_over_languages,
    paired_means,
    paired_medians,
)


def scored(**changes) -> pd.DataFrame:
    """Two prompts with two continuations each."""
    columns = {
        "prompt_id": ["a", "a", "b", "b"],
        "prompt": ["x", "x", "y", "y"],
        "sample": [0, 1, 0, 1],
        "continuation": ["one two one", "one two", "", "three"],
        "toxicity": [0.2, 0.6, np.nan, 0.4],
        "secondary_toxicity": [1.0, 0.0, np.nan, 0.0],
        "perplexity": [4.0, 8.0, np.nan, 2.0],
        "detected_language": ["de", "en", None, "de"],
        "empty": [False, False, True, False],
    }
    return pd.DataFrame(columns | changes)


def test_values_a_prompt_by_hand():
    values = prompt_values(scored(), 0.5, "de")
    assert values["emt"].to_dict() == {"a": 0.6, "b": 0.4}
    assert values["toxprob"].to_dict() == {"a": 1.0, "b": 0.0}
    assert values["avgtox"].to_dict() == pytest.approx({"a": 0.4, "b": 0.4})
    assert values["language_rate"].to_dict() == {"a": 0.5, "b": 1.0}
    # Prompt a has the words one two one one two: two of five are distinct; of its three pairs, two.
    assert values["distinct_1"].to_dict() == pytest.approx({"a": 2 / 5, "b": 1.0})
    assert values["distinct_2"]["a"] == pytest.approx(2 / 3)
    assert math.isnan(values["distinct_2"]["b"])
    assert values["perplexity"]["a"].tolist() == [4.0, 8.0]
    assert values["perplexity"]["b"].tolist() == [2.0]
    assert values["secondary_toxicity"].to_dict() == {"a": 0.5, "b": 0.0}
    assert all(len(found) == 0 for found in values["secondary_perplexity"]), "there was no second reference model"
    second = prompt_values(scored(secondary_perplexity=[3.0, np.nan, np.nan, 5.0]), 0.5, "de")["secondary_perplexity"]
    assert [second["a"].tolist(), second["b"].tolist()] == [[3.0], [5.0]]


def test_a_prompt_without_scores_is_missing_and_not_zero():
    values = prompt_values(scored(toxicity=[0.2, 0.6, np.nan, np.nan]), 0.5, "de")
    assert math.isnan(values["toxprob"]["b"]) and math.isnan(values["emt"]["b"])


def test_paired_means_against_a_loop():
    before, after = np.array([0.9, 0.5, 0.1]), np.array([0.2, 0.4, 0.3])
    places = resampled(3, 20, 3)
    left, right = paired_means(before, after, places)
    assert left.value == pytest.approx(0.5) and right.value == pytest.approx(0.3)
    for row, chosen in enumerate(places):
        assert left.replicates[row] == pytest.approx(sum(before[i] for i in chosen) / 3)
        assert right.replicates[row] == pytest.approx(sum(after[i] for i in chosen) / 3)


def test_a_constant_difference_has_an_interval_of_no_width():
    """Only a paired bootstrap sees that every prompt falls by the same amount."""
    before = np.linspace(0.5, 1.0, 12)
    left, right = paired_means(before, before - 0.25, resampled(12, 200, 0))
    row = comparison_row(left, right, 0.95)
    assert row["drop"] == pytest.approx(0.25)
    assert row["drop_low"] == pytest.approx(0.25) and row["drop_high"] == pytest.approx(0.25)
    assert row["before_high"] - row["before_low"] > 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(1.0, 50.0), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(0, 2**16),
)
def test_paired_medians_against_repeating_the_values(groups, seed):
    arrays = [np.array(group) for group in groups]
    places = resampled(len(arrays), 8, seed)
    left, right = paired_medians(arrays, arrays[::-1], places)
    assert left.value == pytest.approx(float(np.median(np.concatenate(arrays))))
    for row, chosen in enumerate(places):
        assert left.replicates[row] == pytest.approx(np.median(np.concatenate([arrays[i] for i in chosen])))
        assert right.replicates[row] == pytest.approx(np.median(np.concatenate([arrays[::-1][i] for i in chosen])))


def test_only_prompts_with_both_values_are_compared():
    before = pd.Series({"a": 1.0, "b": 0.0, "c": np.nan})
    after = pd.Series({"c": 0.0, "a": 0.5, "d": 1.0})
    left, right, prompts = compare_prompts(before, after, PromptSamples([*"abcd"], 10, 0))
    assert (left.value, right.value, prompts) == (1.0, 0.5, 1)


def test_a_side_that_was_not_run_has_no_number():
    before = pd.Series({"a": 1.0, "b": 0.0})
    left, right, prompts = compare_prompts(before, None, PromptSamples([*"ab"], 10, 0))
    assert (left.value, prompts) == (0.5, 2)
    row = comparison_row(left, right, 0.95)
    assert row["before"] == 0.5
    assert all(math.isnan(row[name]) for name in ("after", "after_low", "drop", "drop_low", "drop_high"))
    left, right, prompts = compare_prompts(None, None, PromptSamples([*"ab"], 10, 0))
    assert math.isnan(left.value) and math.isnan(right.value) and prompts == 0


def side(value: float) -> Side:
    return Side(value, np.full(4, value))


def test_means_over_languages_cover_the_same_languages_on_both_sides():
    missing = Side.missing(4)
    before, after, count = mean_over_languages([(side(0.8), side(0.2)), (side(0.4), missing)], 4)
    assert (before.value, after.value, count) == (0.8, 0.2, 1)
    before, after, count = mean_over_languages([(side(0.8), missing), (side(0.4), missing)], 4)
    assert before.value == pytest.approx(0.6) and math.isnan(after.value) and count == 2
    before, after, count = mean_over_languages([(missing, missing)], 4)
    assert math.isnan(before.value) and math.isnan(after.value) and count == 0


def test_examples_do_not_depend_on_the_scores():
    before, after = scored(), scored(continuation=["A", "B", "C", "D"])
    notebook = definitions("summary_examples")

    def example_rows(before, after, count):
        return notebook.example_rows(notebook.pairs_of(before, after), count, np.random.default_rng(5))

    found = example_rows(before, after, 1)
    assert len(found) == 1
    row = found.iloc[0]
    same = (after["prompt_id"] == row["prompt_id"]) & (after["sample"] == row["sample"])
    assert row["after"] == after.loc[same, "continuation"].item()
    again = example_rows(before.assign(toxicity=1.0), after.assign(toxicity=0.0), 1)
    assert again.iloc[0][["prompt_id", "sample"]].tolist() == row[["prompt_id", "sample"]].tolist()
    assert len(example_rows(before, after, 9)) == 2


@pytest.mark.parametrize(
    ("reference", "title", "toxprob"),
    [("mGPT", "mGPT 1.3B", (0.468, 0.039)), ("BLOOM-1.7B", "BLOOM 1.7B", (0.456, 0.063)),
     ("Llama2-7B", "Llama2 7B", (0.555, 0.214)), ("Aya23-8B", "Aya-23 8B", (0.568, 0.232))],
)  # fmt: skip
def test_a_model_files_reference_finds_its_row_of_the_paper(reference, title, toxprob):
    model = paper_model(reference)
    assert model["title"] == title
    assert (model["before"]["toxprob"], model["after"]["toxprob"]) == toxprob


@pytest.mark.parametrize("reference", [None, "BLOOM", "GPT-2"])
def test_a_reference_without_a_row_of_its_own_finds_none(reference):
    assert paper_model(reference) is None


def test_a_stage_is_found_by_its_wildcards_once_it_has_run(checkout):
    from polydetox.core import paths
    from polydetox.core.artifacts import Stage

    results, folder = recorded("tiny"), paths.profile_run("tiny") / "tiny/base/generate"
    assert results.folder("generate", model="tiny", variant="base") is None
    Stage("generate", folder, {}).finish()
    for wildcards in ({}, {"set": ""}):
        assert results.folder("generate", model="tiny", variant="base", **wildcards) == folder
    assert results.folder("generate", model="tiny", variant="base", set="another") is None
    assert results.folder("generate", model="tiny") is None


def test_what_was_skipped_of_the_data_is_listed_and_counted_once(checkout, capsys):
    from polydetox.core import paths
    from polydetox.core.artifacts import Stage, read_json
    from polydetox.data.rows import Rejected, Skipped

    assert set(recorded("tiny").skipped().values()) == {0}
    for variant in ("base", "dpo"):
        stage = Stage("generate", paths.profile_run("tiny") / "tiny" / variant / "generate", {})
        stage.skips(Skipped(2, [Rejected("RTP_LX_DE.json", 3, "Prompt", "is a list, not text")]))
        manifest = stage.finish()
    line = "RTP_LX_DE.json:3: field 'Prompt' is a list, not text"
    assert manifest["skipped"] == {"blank": 2, "rejected": 1, "rejected_lines": [line]}
    assert read_json(stage.folder / "manifest.json")["skipped"] == manifest["skipped"]
    assert "2 rows without text skipped, 1 malformed lines skipped (RTP_LX_DE.json:3" in capsys.readouterr().out
    assert recorded("tiny").skipped() == {"blank": 2, "repeated": 0, "skipped": 0, "rejected": 1}, "once"
    # Every method of attribute control continues the same prompts, and every way of training reads the same comments.
    reads = [
        stages.read_by(stages.StageRun("constrained_decode", Path("anywhere"), "tiny", kind=method))
        for method in ("base", "plain")
    ]
    assert set(reads) == {stages.read_by(stages.StageRun("generate", Path("anywhere"), "tiny", "dpo"))}
    comments = [stages.StageRun("jigsaw_classify", Path("anywhere"), "tiny", kind=kind) for kind in ("base", "sft-lm")]
    assert len({stages.read_by(run) for run in comments}) == 1


def test_a_mean_over_fewer_languages_than_the_heading_counts_says_so():
    """Toxicity has no score in two of the languages; a metric that is not shown counts for nothing."""
    ends = [f"{side}{end}" for side in SIDES for end in ("", "_low", "_high")]
    rows = [{"comparison": "m/dpo", "scope": "all", "metric": metric, "languages": languages, "before_run": True,
             "after_run": True, **dict.fromkeys(ends, 0.5)}
            for metric, languages in {"emt": 14, "perplexity": 16, "secondary_toxicity": 17}.items()]  # fmt: skip
    results = SimpleNamespace(means=pd.DataFrame(rows), comparisons=[stages.Comparison("m", "dpo", "M")],
                              profile=SimpleNamespace(languages=["any"] * 17))  # fmt: skip
    heading, before = repr(main_table(results, ["emt", "perplexity"])).splitlines()[1:3]
    assert heading == "This run: M, mean over 16 of 17 languages"
    assert before == "before | 0.50 (0.50 to 0.50, 14 languages) | 0.5 (0.5 to 0.5)"


def test_win_rates_of_an_earlier_version_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"rates": {}}')
    control = object.__new__(Control)
    control.models, control.profile = {"tiny": "Tiny"}, SimpleNamespace(name="offline-control")
    control.results = SimpleNamespace(folder=lambda stage, model: tmp_path)
    with pytest.raises(UserError, match=r"no rates_averaged: it is of an earlier version; run .*offline-control"):
        _ = control.wins


def test_a_stage_whose_notebook_is_on_its_way_is_not_done(tmp_path):
    """papermill moves the notebook once the manifest is there; a report may be rendered in between."""
    run = stages.StageRun("summary_run", tmp_path, "", notebook="")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".notebook.part.ipynb").touch()
    assert not run.done
    (tmp_path / ".notebook.part.ipynb").rename(tmp_path / "notebook.ipynb")
    assert run.done
