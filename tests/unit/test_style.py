"""The marks of style, and the toxicity that is left at the same style, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from notebook_cells import definitions, run_cell
from polydetox.metrics.style import style_marks
from polydetox.stats.paired import PromptSamples


def test_marks_by_hand():
    texts = pd.Series([" He is 12, ok.", " <br", " a **b**", "", " 42", " - Oui", "x < y"], index=range(10, 17))
    marks = style_marks(texts, "en")
    assert list(marks.index) == list(texts.index)
    assert marks["digits"].tolist() == [True, False, False, False, True, False, False]
    assert marks["markup"].tolist() == [False, True, True, False, False, False, False]
    assert marks["characters"].tolist() == [14, 4, 8, 0, 3, 6, 5]
    assert marks["punctuation"].tolist() == pytest.approx([2 / 14, 0, 4 / 8, np.nan, 0, 1 / 6, 0], nan_ok=True)
    assert marks["other_script"].tolist() == pytest.approx([0, 0, 0, np.nan, np.nan, 0, 0], nan_ok=True)


@pytest.mark.parametrize(
    ("language", "own", "other"),
    [("hi", "यह किताब है।", "the book"), ("ja", "日本のカメラ", "한국어"), ("zh", "一本书", "ひらがな"),
     ("ru", "это книга", "eto kniga"), ("ar", "هذا كتاب", "यह"), ("ko", "이것은 책", "這本"), ("de", "schön", "это")],
)  # fmt: skip
def test_the_script_of_each_language(language, own, other):
    assert style_marks(pd.Series([own, other, f"{own} {own} x"]), language)["other_script"].tolist() == [0.0, 1.0, 0.0]


def test_digits_and_marks_of_other_scripts():
    marks = style_marks(pd.Series(["१२ दिन", "٣ أيام", "किताब।"]), "hi")
    assert marks["digits"].tolist() == [True, True, False]
    assert marks.loc[2, "punctuation"] == pytest.approx(1 / 6), "a vowel sign is no punctuation"


def continuations(rows):
    columns = ["prompt_id", "language", "digits", "markup", "long", "toxicity"]
    return pd.DataFrame(rows, columns=columns)


def test_toxicity_at_the_base_models_style_by_hand():
    before = continuations([("a", "de", False, False, False, 0.8), ("a", "de", False, False, False, 0.6),
                            ("b", "de", True, False, False, 0.2), ("b", "de", False, True, True, 0.9)])  # fmt: skip
    after = continuations([("a", "de", False, False, False, 0.4), ("a", "de", True, False, False, 0.1),
                           ("b", "de", True, False, False, 0.1), ("b", "de", True, False, True, 0.0)])  # fmt: skip
    weights = pd.DataFrame([[1.0, 1.0], [2.0, 0.0], [1.0, 3.0]], columns=["a", "b"])
    notebook = definitions("summary_style")
    (left, right), covered = notebook.standardised(before, after, weights)
    # Of the base model's four, two have neither and one has digits; nothing after tuning has markup.
    assert covered == 3 / 4
    assert left.value == pytest.approx((2 * 0.7 + 0.2) / 3) and right.value == pytest.approx((2 * 0.4 + 0.1) / 3)
    # The first replicate has prompt a alone; the second, each of b's three times.
    assert left.replicates == pytest.approx([0.7, (2 * 0.7 + 3 * 0.2) / 5])
    assert right.replicates == pytest.approx([0.4, (2 * 0.4 + 3 * 0.1) / 5])
    mean = notebook.mean_of(before, "toxicity", weights)
    assert mean.value == pytest.approx(2.5 / 4) and mean.replicates == pytest.approx([0.7, (1.4 + 3.3) / 8])


def test_what_is_left_of_the_drop_is_of_the_same_continuations():
    before = continuations([(name, "de", digits, False, False, toxicity) for name in "abc"
                            for digits, toxicity in ((False, 0.8), (False, 0.6), (True, 0.2))]
                           + [("a", "de", False, True, True, 0.9)])  # fmt: skip
    after = continuations([(name, "de", digits, False, False, toxicity) for name in "abc"
                           for digits, toxicity in ((False, 0.4), (True, 0.1), (True, 0.1))]
                          + [("a", "de", True, False, True, 0.0)])  # fmt: skip
    results = SimpleNamespace(confidence=0.95, prompt_samples=lambda prompt_set: PromptSamples([*"abc"], 50, 0))
    notebook = definitions("summary_style", results=results)
    last = list(notebook.toxicity_by_stratum(before, after))[-1]
    # Without what has markup, or is long: 1.6 / 3 before, 0.6 / 3 after; weighted as before, 0.9 / 3.
    assert last["fractions"][0] == pytest.approx(0.9) and last["whole"]["drop"] == pytest.approx(1 / 3)
    assert last["drop"] == pytest.approx(0.7 / 3) and last["left"] == pytest.approx((0.7, 0.7, 0.7))


def test_a_language_that_one_side_lacks_is_skipped_on_both(tmp_path):
    def scores(_, variant, language):
        if (variant, language) != ("dpo", "fr"):
            return pd.DataFrame({"prompt_id": ["a", "b"], "sample": 0, "continuation": [" 1", " x"], "toxicity": 0.5,
                                 "empty": False})  # fmt: skip

    of = pd.DataFrame({"language": ["de", "de", "fr", "fr"], "prompt_id": ["a", "b"] * 2, "sample": 0, "tokens": 2})
    of.to_parquet(tmp_path / "continuations.parquet")
    comparison = SimpleNamespace(name="m/dpo", model="m", variant="dpo")
    results = SimpleNamespace(profile=SimpleNamespace(languages=["de", "fr"]), comparisons=[comparison], scores=scores,
                              folder=lambda *_, **__: tmp_path)  # fmt: skip
    names = vars(definitions("summary_style", results=results)) | {"KEYS": ["language", "prompt_id", "sample"]}
    space = run_cell("summary_style", "style-sides", **names)
    assert [set(side["language"]) for side in space["sides"]["m/dpo"]] == [{"de"}, {"de"}]
    assert space["absent"] == {"m/dpo": ["French"]}


def test_pairs_of_one_style_by_hand():
    table = pd.DataFrame([
        ("a", "A", " kind", 0.1, False), ("a", "A", " 1 kind", 0.0, True), ("a", "A", " cruel", 0.9, False),
        ("a", "A", " 2 mean", 0.7, True), ("a", "A", " odd", 0.3, False), ("b", "B", " 3", 0.0, True),
        ("b", "B", " x", 0.9, False),
    ], columns=["prompt_id", "prompt", "continuation", "toxicity", "digits"])  # fmt: skip
    on_policy_pairs = definitions("pairs").on_policy_pairs
    assert len(on_policy_pairs(table, 0.2)) == 2, "regardless of style, b has a pair as well"
    one = on_policy_pairs(table, 0.2, 1, ["digits"])
    assert one[["chosen", "rejected"]].values.tolist() == [[" kind", " cruel"]], "the wider of the two"
    both = on_policy_pairs(table, 0.2, 2, ["digits"])
    assert both[["chosen", "rejected"]].values.tolist() == [[" kind", " cruel"], [" 1 kind", " 2 mean"]]
