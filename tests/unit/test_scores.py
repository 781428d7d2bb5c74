"""Scores in shards: resumed, taken up by another stage, and computed again when something they depend on changes."""

from __future__ import annotations

import pandas as pd
import pytest

from polydetox.core.parameters import Settings, checked
from polydetox.metrics import scores
from polydetox.metrics.scores import VALUES, Scoring

PROMPTS = ["The neighbours", "La capital", "Der Nachbar", "Сегодня", "今日は"]


def has_values(scoring, table, language, folder) -> bool:
    """Whether a folder holds the values of a table under some settings."""
    return len(list((folder / scoring._key(table, language)).glob("*.parquet"))) == 3  # shards of two prompts


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [(f"p{number}", prompt, sample, f" said {'word ' * sample}{number}" if sample else " ")
            for number, prompt in enumerate(PROMPTS) for sample in range(3)]  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "sample", "continuation"])


@pytest.fixture
def settings(checkout, monkeypatch) -> Settings:
    monkeypatch.setattr(scores, "_PROMPTS", 2)
    return checked(
        "score", reference_model="tiny", dtype="float32", scorer="lexicon", second_scorer=None, perplexity_samples=2
    )


def test_values_go_with_their_rows(settings, table, tmp_path):
    values = Scoring(settings).values(table, "en", tmp_path / "en")
    assert list(values.columns) == VALUES and list(values.index) == list(table.index)
    assert len(list((tmp_path / "en").glob("*/*.parquet"))) == 3  # shards of two prompts
    # A blank text has no values, and the third sample no perplexity.
    assert values["toxicity"].isna().tolist() == [True, False, False] * 5
    assert values["perplexity"].isna().tolist() == [True, False, True] * 5
    assert values["secondary_toxicity"].isna().all()
    # In another order, or alone, a row has the same values.
    shuffled = table.sample(frac=1, random_state=0)
    other = Scoring(settings).values(shuffled, "en", tmp_path / "other").loc[table.index]
    pd.testing.assert_frame_equal(other, values, rtol=1e-5)


def test_a_stopped_stage_goes_on_and_a_finished_one_loads_nothing(settings, table, tmp_path, monkeypatch):
    whole = Scoring(settings).values(table, "en", tmp_path / "whole")
    folder = tmp_path / "parts"
    scoring = Scoring(settings)
    scored = []
    score = Scoring._score

    def stop_at_the_third(self, rows, language):
        scored.append(rows["prompt_id"].iloc[0])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(self, rows, language)

    monkeypatch.setattr(Scoring, "_score", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        scoring.values(table, "en", folder)
    assert not has_values(scoring, table, "en", folder)
    pd.testing.assert_frame_equal(Scoring(settings).values(table, "en", folder), whole)
    assert scored == ["p0", "p2", "p4", "p4"]
    monkeypatch.setattr(Scoring, "_score", lambda *_: pytest.fail("something was scored"))
    assert has_values(Scoring(settings), table, "en", folder)
    pd.testing.assert_frame_equal(Scoring(settings).values(table, "en", folder), whole)


def test_what_scores_depend_on_tells_them_apart(settings, table, tmp_path):
    Scoring(settings).values(table, "en", tmp_path / "en")
    assert has_values(Scoring(settings), table, "en", tmp_path / "en")
    assert not has_values(Scoring(settings), table, "de", tmp_path / "en")
    assert not has_values(Scoring(settings), table.assign(continuation=" other"), "en", tmp_path / "en")
    for change in (
        {"perplexity_samples": None},
        {"reference_model": ""},
        {"perplexity": "published"},
        {"batch_size": 2},
        {"second_scorer": "lexicon"},
    ):
        assert not has_values(Scoring(settings.model_copy(update=change)), table, "en", tmp_path / "en")
    # Scores under other settings take the place of those before.
    Scoring(settings.model_copy(update={"reference_model": ""})).values(table, "en", tmp_path / "en")
    assert len(list((tmp_path / "en").iterdir())) == 1
