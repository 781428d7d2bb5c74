"""The bootstrap resamples as it always has: expected values that any other order of the samples would miss.

Samples that languages share, tests for each language and the mixed model, by hand and by brute force.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from notebook_cells import definitions, summarise
from polydetox.benchmarks.harness import suite_replicates
from polydetox.metrics.evaluate import prompt_values
from polydetox.metrics.language import language_rate
from polydetox.stats.agreement import by_prompt, cluster_auc, weighted_spearman
from polydetox.stats.bootstrap import bootstrap, pooled_quantile, resampled
from polydetox.stats.correlation import correlation
from polydetox.stats.paired import (
    PromptSamples,
    compare_prompts,
    comparison_row,
    holm,
    mean_over_languages,
    paired_means,
    paired_medians,
    sign_flip,
)

OPTIONS = {"samples": 200, "confidence": 0.9, "seed": 7}
X, Y = np.sin(np.arange(24.0)), np.cos(0.7 * np.arange(24.0))
OWNER = np.arange(24) // 3
GROUPS = [np.exp(X[start : start + 4]) for start in range(0, 24, 4)]


def row(found: dict[str, float | None], *names: str) -> list[float | None]:
    return [found[name] for name in names or ("value", "low", "high")]


@pytest.mark.parametrize(("found", "expected"), [
    (bootstrap(X, **OPTIONS), [0.040825242062094313, -0.17862174083203494, 0.2632056794536221]),
    (pooled_quantile(GROUPS, 0.25, **OPTIONS), [0.5532823566625635, 0.4290334443756452, 0.7679737335770086]),
    (definitions("attribute_eval").perplexity(X + 2, np.arange(1.0, 25.0), **OPTIONS),
     [1.1773498458921619, 1.139219874871988, 1.2163144001296926]),
    (cluster_auc(X > 0, Y, OWNER, **OPTIONS), [0.5277777777777778, 0.3283216783216783, 0.7260582010582011]),
    (by_prompt(lambda weights: weighted_spearman(X, Y, weights), OWNER, **OPTIONS),
     [0.05304347826086957, -0.3542587741973639, 0.4299567132601647]),
])  # fmt: skip
def test_intervals(found, expected):
    assert row(found) == pytest.approx(expected, rel=1e-12)


def test_correlation_over_whole_groups():
    found = correlation(X, X + Y, OWNER, **OPTIONS)
    expected = [0.720274147052878, 0.5714993185664577, 0.8563865430688277, 0.6642852018922938, 0.7675256212861135]
    assert row(found, "r", "low", "high", "least_without_one", "most_without_one") == pytest.approx(expected, rel=1e-12)


def test_paired_means_and_medians():
    means = comparison_row(*paired_means(X, Y, resampled(24, 200, [7, 3])), 0.9)
    assert row(means, "drop", "drop_low", "drop_high", "before_low", "after_high") == pytest.approx(
        [0.061050702334742024, -0.25508051737043924, 0.4135821117293622, -0.1773553721340205, 0.21952354894956122],
        rel=1e-12,
    )
    medians = comparison_row(*paired_medians(GROUPS, GROUPS[::-1], resampled(6, 200, 7)), 0.9)
    assert row(medians, "before", "before_low", "before_high", "drop_low", "drop_high") == pytest.approx(
        [1.0757814182572676, 0.7498340851945587, 1.52221580048069, -0.3594873572615951, 0.3600456375968229], rel=1e-12
    )


def test_a_generator_goes_on_from_task_to_task():
    value, replicates = suite_replicates([(X > 0).astype(float), (Y > 0).astype(float)], samples=200, seed=7)
    assert (value, replicates.mean(), replicates.std()) == pytest.approx(
        (0.5208333333333333, 0.5190625, 0.06987021388398953), rel=1e-12
    )


def test_the_summary_is_the_mean_of_the_values_of_the_prompts():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({
        "prompt_id": np.repeat(["c", "a", "b"], 4), "sample": np.tile(range(4), 3), "continuation": "one two one",
        "toxicity": [*rng.random(8), *[np.nan] * 4], "secondary_toxicity": rng.random(12), "perplexity": rng.random(12),
        "detected_language": ["de", "de", "en", None] * 2 + [None] * 4, "empty": False, "truncated": False,
        **{f"token_distinct_{order}": 0.5 for order in (1, 2, 3)},
    })  # fmt: skip
    values = prompt_values(scores, 0.5, "de")
    assert list(values["emt"].index) == ["c", "a", "b"] and np.isnan(values["emt"]["b"]), "no score is not 0"
    summary = summarise(scores, "de", 0.5, **OPTIONS)
    for name in ("emt", "toxprob", "avgtox", "language_rate", "secondary_toxicity"):
        assert summary[name]["value"] == values[name].mean(), name
    assert language_rate(scores, "de").dropna().to_dict() == {"c": pytest.approx(2 / 3), "a": pytest.approx(2 / 3)}


# --- the same prompts in every language ---------------------------------------------------------------------------


def test_every_language_has_the_same_prompts_in_a_replicate():
    samples = PromptSamples(["a", "b", "c"], 50, 7)
    names = np.array(["a", "b", "c"])[resampled(3, 50, 7)]
    for own in (["a", "b", "c"], ["c", "a", "b"]):
        assert (np.array(own)[samples.of(own)] == names).all(), "whatever order a language has them in"


def test_a_language_that_lacks_prompts_passes_over_them():
    samples, own = PromptSamples(list("abcdefgh"), 2000, 1), ["g", "a", "c", "e", "b", "h"]
    found, shared = np.array(own)[samples.of(own)], np.array(list("abcdefgh"))[resampled(8, 2000, 1)]
    assert found.shape == (2000, 6), "a replicate is as large as the language"
    for row, every in zip(found, shared, strict=True):
        kept = [prompt for prompt in every if prompt in own][:6]
        assert row[: len(kept)].tolist() == kept
    frequency = pd.Series(found.ravel()).value_counts(normalize=True)
    assert set(frequency.index) == set(own) and frequency.between(0.158, 0.175).all()
    assert (samples.of(["d"]) == 0).all(), "one prompt alone is in every replicate"
    unknown = samples.of(["x", "y"])
    assert set(unknown.ravel()) == {0, 1}, "prompts that the set has not are sampled as well"


def test_a_mean_over_parallel_languages_is_no_surer_than_one_of_them():
    """Two languages that say the same of every prompt are one measurement, not two."""
    samples, prompts = PromptSamples(range(24), 500, 0), pd.Series(X)
    pairs = [compare_prompts(prompts, prompts * 0, samples)[:2] for _ in range(2)]
    both, one = (comparison_row(*mean_over_languages(sides, 500)[:2], 0.95) for sides in (pairs, pairs[:1]))
    assert both == one
    other = compare_prompts(prompts, prompts * 0, PromptSamples(range(24), 500, 1))[:2]
    apart = comparison_row(*mean_over_languages([pairs[0], other], 500)[:2], 0.95)
    assert apart["drop_high"] - apart["drop_low"] < 0.85 * (one["drop_high"] - one["drop_low"])


# --- a test for each language -------------------------------------------------------------------------------------


def test_sign_flips_against_all_of_them():
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.0, 0.5, -0.2, 0.3])
    means = np.array([np.mean(differences * signs) for signs in product([-1, 1], repeat=8)])
    exact = (np.abs(means) >= differences.mean() - 1e-12).mean()
    assert sign_flip(differences) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))
    assert sign_flip(differences) == sign_flip(-differences) == sign_flip(differences * 3), "the same flips every time"
    assert sign_flip(np.array([0.4])) == sign_flip(np.zeros(5)) == 1.0
    assert sign_flip(np.full(30, 0.1)) == 1 / 10_000, "never 0: the data themselves are one of the flips"


def test_holm_by_hand():
    # Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, none less than the one before.
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


# --- the mixed model ----------------------------------------------------------------------------------------------


def drops(prompts: int, languages: int, prompt_sd: float = 0.1) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    effects = prompt_sd * rng.normal(size=(prompts, 1)) + 0.05 * rng.normal(size=(1, languages))
    return pd.DataFrame(0.2 + effects + 0.15 * rng.normal(size=(prompts, languages)))


def test_a_table_without_gaps_is_a_two_way_analysis_of_variance():
    table, (p, n) = drops(24, 17), (24, 17)
    by_prompt, by_language, mean = table.mean(axis=1), table.mean(), table.to_numpy().mean()
    rest = table.sub(by_prompt, axis=0).sub(by_language, axis=1) + mean
    squares = np.array([n * by_prompt.var(), p * by_language.var(), (rest.to_numpy() ** 2).sum() / ((p - 1) * (n - 1))])
    combined = squares[0] + squares[1] - squares[2]
    freedom = combined**2 / (squares**2 / [p - 1, n - 1, (p - 1) * (n - 1)]).sum()
    half = stats.t.ppf(0.975, freedom) * np.sqrt(combined / (p * n))
    sds = np.sqrt([(squares[0] - squares[2]) / n, (squares[1] - squares[2]) / p, squares[2]])
    found = definitions("summary_detox").mixed_model(table, 0.95)
    assert list(found.values()) == pytest.approx([mean, mean - half, mean + half, *sds], rel=1e-4)


def test_a_table_with_gaps_against_the_likelihood_written_out():
    table = drops(9, 5).mask(np.random.default_rng(2).random((9, 5)) < 0.2)
    long = table.stack().dropna()
    prompts, languages = (np.equal.outer(*[long.index.get_level_values(level)] * 2) for level in (0, 1))

    def fitted(variances: np.ndarray) -> tuple[float, float, float]:
        inverse = np.linalg.inv(variances[0] * prompts + variances[1] * languages + variances[2] * np.eye(len(long)))
        mean = inverse.sum(axis=0) @ long / inverse.sum()
        deviance = -np.linalg.slogdet(inverse)[1] + np.log(inverse.sum()) + (long - mean) @ inverse @ (long - mean)
        return deviance, mean, 1 / inverse.sum()

    best = optimize.minimize(lambda logs: fitted(np.exp(logs))[0], [-4.0, -4.0, -4.0], method="Nelder-Mead",
                             options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 5000}).x  # fmt: skip
    found = definitions("summary_detox").fit_crossed(table)
    assert found == pytest.approx([*fitted(np.exp(best))[1:], *np.exp(best)], rel=1e-3)


def test_the_mixed_model_covers_other_languages_and_needs_two_of_them():
    mixed_model = definitions("summary_detox").mixed_model
    few = mixed_model(drops(24, 4, prompt_sd=0.0), 0.95)
    many = mixed_model(drops(24, 17, prompt_sd=0.0), 0.95)
    assert few["high"] - few["low"] > 1.5 * (many["high"] - many["low"])
    for table in (drops(24, 1), drops(1, 5), (drops(4, 3) * 0 + 0.25).mask(np.eye(4, 3) > 0), pd.DataFrame()):
        assert set(mixed_model(table, 0.95).values()) == {None}
