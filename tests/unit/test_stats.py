"""The bootstrap resamples as it always has: expected values that any other order of the samples would miss."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from notebook_cells import definitions, summarise
from polydetox.benchmarks.harness import suite_replicates
from polydetox.metrics.evaluate import prompt_values
from polydetox.metrics.language import language_rate
from polydetox.stats.agreement import by_prompt, cluster_auc, weighted_spearman
from polydetox.stats.bootstrap import bootstrap, pooled_quantile
from polydetox.stats.correlation import correlation
from polydetox.stats.paired import comparison_row, paired_means, paired_medians

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
    means = comparison_row(*paired_means(X, Y, 200, np.random.default_rng([7, 3])), 0.9)
    assert row(means, "drop", "drop_low", "drop_high", "before_low", "after_high") == pytest.approx(
        [0.061050702334742024, -0.25508051737043924, 0.4135821117293622, -0.1773553721340205, 0.21952354894956122],
        rel=1e-12,
    )
    medians = comparison_row(*paired_medians(GROUPS, GROUPS[::-1], 200, np.random.default_rng(7)), 0.9)
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
