"""Runs in which something has no values at all: the summary notebooks go through, and say what is missing.

A model that was tuned too far writes nothing; a scorer may know one side only; a run may have one language or one
prompt. Nothing of that may stop the report that would show it, and no missing value may be printed as a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic_control
from recorded import SECTIONS, recorded

import synthetic
from notebook_cells import definitions, run_cells
from polydetox.core import paths
from polydetox.core.artifacts import read_json
from polydetox.evaluation.tables import MAIN_METRICS, language_table, languages_table, main_table
from polydetox.report.assemble import read_variables
from polydetox.workflow import load, record_file

Change = Callable[[str, str, pd.DataFrame], pd.DataFrame]
LANGUAGES = ["ar", "de", "en", "ja"]
VALUES = ["toxicity", "secondary_toxicity", "perplexity", *(f"token_distinct_{order}" for order in (1, 2, 3))]


def empty(scores: pd.DataFrame) -> pd.DataFrame:
    """The continuations of a model that writes nothing."""
    return scores.assign(continuation="", empty=True, truncated=False, detected_language=None,
                         **dict.fromkeys(VALUES, np.nan))  # fmt: skip


def tuned_writes_nothing(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return scores if variant == "base" else empty(scores)


def nothing_is_written(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return empty(scores)


def one_language_collapses(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return empty(scores) if variant != "base" and language == "de" else scores


def one_language_stays(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return empty(scores) if variant != "base" and language != "de" else scores


def the_base_is_not_scored(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return scores.assign(toxicity=np.nan) if variant == "base" else scores


def all_scores_are_equal(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return scores.assign(toxicity=0.5, secondary_toxicity=1.0, perplexity=3.0, detected_language=language)


def unchanged(variant: str, language: str, scores: pd.DataFrame) -> pd.DataFrame:
    return scores


CASES: dict[str, tuple[Change, dict[str, Any]]] = {
    "tuned writes nothing": (tuned_writes_nothing, {}),
    "nothing is written": (nothing_is_written, {}),
    "one language collapses": (one_language_collapses, {}),
    "one language stays": (one_language_stays, {}),
    "the base is not scored": (the_base_is_not_scored, {}),
    "all scores are equal": (all_scores_are_equal, {}),
    "English alone, collapsed": (tuned_writes_nothing, {"languages": ["en"]}),
    "one continuation": (unchanged, {"prompts": 1, "samples": 1}),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory):
    """A made-up run in which something is missing, and what its summary notebooks show, by section."""
    change, sizes = CASES[request.param]
    folder = tmp_path_factory.mktemp("collapse")
    languages = sizes.get("languages", LANGUAGES)
    synthetic.make_checkout(folder / "checkout", languages)
    made, made_control = synthetic.make_scores, synthetic_control.make_scores

    def make_scores(variant: str, language: str, *rest: Any) -> pd.DataFrame:
        return change(variant, language, made(variant, language, *rest))

    def make_control_scores(method: str, *rest: Any) -> pd.DataFrame:
        scores = made_control(method, *rest)
        changed = [change("dpo" if method == "regularised" else "base", str(language), rows)
                   for language, rows in scores.groupby("language", sort=False)]  # fmt: skip
        return pd.concat(changed, ignore_index=True).assign(repeated=lambda table: table["repeated"].where(
            ~table["empty"]))  # fmt: skip

    with pytest.MonkeyPatch.context() as patch, synthetic.inside(folder):
        patch.setattr(synthetic, "make_scores", make_scores)
        patch.setattr(synthetic_control, "make_scores", make_control_scores)
        synthetic.make_run(folder / "runs", languages, prompts=sizes.get("prompts", 6), samples=sizes.get("samples", 3))
        yield request.param, folder


def summary_shows(section: str) -> list[str]:
    """Run a summary notebook where the report looks for it; returns what its cells show."""
    folder = paths.profile_run(synthetic.PROFILE) / "summary" / section
    return run_cells(f"summary_{section}", run=str(record_file(synthetic.PROFILE)), output_folder=str(folder))["shown"]


def test_every_summary_goes_through_and_prints_no_missing_value_as_a_number(case):
    name, _ = case
    shown = {section: summary_shows(section) for section in SECTIONS}
    sentences = read_variables(recorded(synthetic.PROFILE), paths.root() / "book")
    shown |= {"variables": list(sentences.values())}
    wrong = [(where, text[:200]) for where, texts in shown.items() for text in texts
             if re.search(r"\b(nan|NaN|None|inf)\b", text)]  # fmt: skip
    assert not wrong, name


def test_the_correlation_of_what_is_left_is_told_or_not_defined(case, tmp_path):
    name, _ = case
    where = load(synthetic.PROFILE).resolved("transfer", model=synthetic.MODEL, variant=synthetic.TRAINED)
    read = {name: where[name] for name in ("before", "after", "retrieval")}
    shown = run_cells("transfer", **read, bootstrap_samples=50, output_folder=str(tmp_path))["shown"]
    found = read_json(tmp_path / "metrics.json")
    left = {"one language collapses": 2, "one language stays": 1, "all scores are equal": 3}
    languages = left.get(name, 0)
    assert found["languages"] == languages == found["accuracy"]["points"]
    assert found["accuracy"]["r"] is None and shown[-1] == f"Pearson's r over {languages} languages: not defined."


@pytest.mark.parametrize("case", ["tuned writes nothing"], indirect=True)
def test_a_model_that_writes_nothing_is_shown_to_write_nothing(case):
    results = recorded(synthetic.PROFILE, samples=50)
    tiny = results.means[(results.means["comparison"] == "tiny/dpo") & (results.means["scope"] == "all")]
    for metric in ("emt", "toxprob", "avgtox", "perplexity", "distinct_2", "token_distinct_2", "language_rate"):
        row = tiny.set_index("metric").loc[metric]
        base = results.metrics[(results.metrics["metric"] == metric) & (results.metrics["variant"] == "base")]
        assert row["before"] == pytest.approx(base["value"].mean()), "the base model stands alone"
        assert np.isnan(row["after"]) and np.isnan(row["drop"]) and row["languages"] == len(LANGUAGES), metric
    lines = repr(main_table(results)).splitlines()
    assert lines[3].split(" | ") == ["after", *["not measured"] * len(MAIN_METRICS)]
    assert lines[7].split(" | ") == ["after", *["not run"] * len(MAIN_METRICS)], "the variant that was never run"
    for section in ("detox", "transfer", "scorers"):
        summary_shows(section)
    said = read_variables(recorded(synthetic.PROFILE), paths.root() / "book")
    assert said["toxicity_sentence"] == "Not run, or not measured on both sides: Tiny (DPO) and Tiny (LoRA)."
    assert said["transfer_sentence"] == said["abstract_sentence"] == "Not run."
    assert said["scored_sentence"].startswith(
        "The results rest on 144 continuations: 72 have no score and are skipped, 72 are empty (72 after "
    )
    assert said["correlation_sentence"] == "For Tiny (DPO), no correlation is defined over 0 languages."
    assert said["scorers_sentence"] == "Tiny (DPO): not measured on both sides. Tiny (LoRA): not run."
    drift_of = definitions("summary_fluency", results=results).drift_of
    drift = languages_table(results, drift_of, dict.fromkeys(["own", "English", "other"], ("before", "after")))
    assert set(repr(drift).splitlines()[3].split(" | ")[2::2]) == {"not measured", "\N{EN DASH}"}


@pytest.mark.parametrize("case", ["one language collapses"], indirect=True)
def test_a_language_in_which_nothing_is_written_is_skipped_in_the_means(case):
    results = recorded(synthetic.PROFILE, samples=50)
    assert "This run: Tiny (DPO), mean over 3 of 4 languages" in repr(main_table(results))
    lines = repr(language_table(results)).splitlines()
    german = next(line for line in lines if line.startswith("German")).split(" | ")
    assert german[2:4] == ["not measured"] * 2 and german[5:] == ["not measured"] * 2 and float(german[1]) > 0
