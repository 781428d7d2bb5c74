"""Before and after under every available scorer, and where they disagree.

The differences are measured as in :mod:`polydetox.results.collect`: prompt by prompt, with the same draws for every
scorer, so that two scorers differ by what they say of the same prompts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.results.collect import Results
from polydetox.results.stages import Comparison
from polydetox.results.tables import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Cell,
    Group,
    PaperTable,
    number,
)
from polydetox.scoring.several import KEYS, UNTUNED, linked
from polydetox.stats.paired import Side, compare_prompts, comparison_row, mean_over_languages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of each scorer as it is, and on the scale of the first one.
OWN, ON_SCALE = ("emt", "toxprob"), ("emt_linked", "toxprob_matched")
TITLES = {"emt": "EMT", "toxprob": "ToxProb", "emt_linked": "EMT, linked", "toxprob_matched": "ToxProb, matched"}


# --- what has been run ------------------------------------------------------------------------------------------


def agreement_folders(results: Results) -> dict[str, Any]:
    """The folder of each model's finished agreement stage, by the model's folder name."""
    return {run.model: run.folder for run in results.stages if run.stage == "agreement" and run.done}


@lru_cache(maxsize=8)
def _read(results: Results, model: str) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Scores and scales of a model, and its scorers, the first of which is the reference."""
    folder = agreement_folders(results)[model]
    names = read_json(folder / "metrics.json")["scorers"]
    scores = read_parquet(folder / "scores.parquet", [*KEYS, *names])
    return scores, read_parquet(folder / "scales.parquet", ["language", "scorer", "own", "matched"]), names


def pairs(results: Results) -> pd.DataFrame:
    """The agreement of every two scorers: ``model`` and the columns of ``scoring.several.PAIR_COLUMNS``."""
    tables = [
        read_parquet(folder / "pairs.parquet", ["variant", "language", "first", "second"]).assign(model=model)
        for model, folder in agreement_folders(results).items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["model", "first", "second"])


@lru_cache(maxsize=2)
def by_scorer(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Before, after and drop under each scorer: in every language, and as means over languages.

    Columns of the first: ``comparison, scorer, language, metric, prompts`` and those of ``comparison_row``; the second
    has ``languages``, how many of them the mean takes in, in their place. Metrics are those of ``TITLES``.
    """
    rows, means = [], []
    for comparison in results.comparisons:
        if not results.folder("agreement", model=comparison.model):
            continue
        scores, scales, names = _read(results, comparison.model)
        carried = linked(scores, names)
        limits = scales.set_index(["language", "scorer"])
        for name in names:
            sides: dict[str, list[tuple[Side, Side]]] = {metric: [] for metric in TITLES}
            for language in results.profile.languages:
                if (language, name) not in limits.index:
                    continue
                limit = limits.loc[(language, name)]
                values = [
                    _values(scores, carried, variant, language, name, limit)
                    for variant in (UNTUNED, comparison.variant)
                ]
                for metric in TITLES:
                    # The same draws for every scorer and metric.
                    before, after, prompts = compare_prompts(
                        values[0][metric], values[1][metric], results.samples, results.language_rng(language)
                    )
                    sides[metric].append((before, after))
                    rows.append({"comparison": comparison.name, "scorer": name, "language": language, "metric": metric,
                                 "prompts": prompts, **comparison_row(before, after, results.confidence)})  # fmt: skip
            for metric, pair in sides.items():
                before, after, count = mean_over_languages(pair, results.samples)
                means.append({"comparison": comparison.name, "scorer": name, "metric": metric, "languages": count,
                              **comparison_row(before, after, results.confidence)})  # fmt: skip
    keys = ["comparison", "scorer", "metric"]
    ends = [f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")]
    return (pd.DataFrame(rows, columns=[*keys, "language", "prompts", *ends]),
            pd.DataFrame(means, columns=[*keys, "languages", *ends]))  # fmt: skip


def _values(
    scores: pd.DataFrame, carried: pd.DataFrame, variant: str, language: str, name: str, limit: pd.Series
) -> dict[str, pd.Series | None]:
    """The value of each metric for each prompt of one variant and language; None where the scorer has no score."""
    chosen = (scores["variant"] == variant) & (scores["language"] == language)
    if scores.loc[chosen, name].isna().all():
        return dict.fromkeys(TITLES)
    own = prompt_toxicity(scores[chosen], name, limit["own"])
    matched = prompt_toxicity(scores[chosen], name, limit["matched"])
    return {
        "emt": own["emt"],
        "toxprob": own["toxprob"],
        "emt_linked": prompt_toxicity(carried[chosen], name, limit["own"])["emt"],
        "toxprob_matched": matched["toxprob"] if pd.notna(limit["matched"]) else None,
    }


# --- tables -----------------------------------------------------------------------------------------------------


def scorers_table(results: Results) -> PaperTable:
    """Means over languages of EMT and ToxProb before and after under each scorer, at its own threshold."""
    return _means_table(results, OWN)


def one_scale_table(results: Results) -> PaperTable:
    """The same on the first scorer's scale: scores linked by percentiles, and matched thresholds."""
    return _means_table(results, ON_SCALE)


def _means_table(results: Results, metrics: tuple[str, str]) -> PaperTable:
    _, means = by_scorer(results)
    spans = [("", 2), *((TITLES[metric], 3) for metric in metrics)]
    groups = []
    for comparison in results.comparisons:
        mine = means[means["comparison"] == comparison.name]
        both = all(results.evaluated(comparison, results.profile.languages).values())
        missing = NOT_MEASURED if both else NOT_RUN
        lines: list[list[Cell | str]] = []
        for scorer, rows in mine.groupby("scorer", sort=False):
            rows = rows.set_index("metric")
            covered = Cell(str(int(rows["languages"].max())))
            cells = (cell for metric in metrics for cell in _triple(rows.loc[metric], missing))
            lines.append([str(scorer), covered, *cells])
        groups.append(Group(comparison.title, lines or [["", Cell(""), *[Cell(NOT_RUN)] * 6]]))
    return PaperTable(["Scorer", "Languages", *["before", "after", "drop"] * len(metrics)], groups, spans)


def _triple(row: pd.Series, missing: str) -> list[Cell]:
    """Before, after and the drop with its interval."""
    return [number(row["before"], 2, missing=missing), number(row["after"], 2, missing=missing),
            number(row["drop"], 2, row["drop_low"], row["drop_high"], missing=missing)]  # fmt: skip


def agreement_by_language_table(results: Results) -> PaperTable:
    """Of each language how the first scorer and each other one agree, and the drop of ToxProb under both.

    Rank correlation and area under the curve are of the base model's continuations, drops at matched thresholds.
    """
    agreed, (rows, _) = pairs(results), by_scorer(results)
    columns = ["Language", "Spearman", "AUC", "threshold", "first", "other", "direction"]
    spans = [("", 1), ("Agreement before tuning", 2), ("Matched", 1), ("Drop of ToxProb, matched", 3)]
    groups = []
    for comparison in results.comparisons:
        mine = rows[(rows["comparison"] == comparison.name) & (rows["metric"] == "toxprob_matched")]
        names = list(dict.fromkeys(mine["scorer"]))
        for other in names[1:]:
            lines = [
                _agreement_line(results, comparison, agreed, mine, names[0], other, language)
                for language in results.profile.languages
            ]
            groups.append(Group(f"{comparison.title}: {names[0]} and {other}", lines))
    empty: list[list[Cell | str]] = [["", *[number(None, 2)] * (len(columns) - 1)]]
    return PaperTable(columns, groups or [Group(None, empty)], spans)


def _agreement_line(
    results: Results, comparison: Comparison, agreed: pd.DataFrame, mine: pd.DataFrame, first: str, other: str,
    language: str,
) -> list[Cell | str]:  # fmt: skip
    asked = {"model": comparison.model, "variant": UNTUNED, "language": language, "first": first, "second": other}
    pair = agreed[(agreed[list(asked)] == list(asked.values())).all(axis=1)]
    if pair.empty or pair["scored_by_both"].iloc[0] == 0:
        return [LANGUAGES[language], *[Cell(NOT_APPLICABLE)] * 6]
    measured = pair.iloc[0]
    scales = _read(results, comparison.model)[1].set_index(["language", "scorer"])
    drops = [mine[(mine["language"] == language) & (mine["scorer"] == name)].iloc[0] for name in (first, other)]
    return [
        LANGUAGES[language],
        *(_defined(measured[name], measured[f"{name}_low"], measured[f"{name}_high"])
          for name in ("spearman", "auc_of_second")),
        _defined(scales.loc[(language, other), "matched"]),
        *(_defined(row["drop"], row["drop_low"], row["drop_high"]) for row in drops),
        Cell(direction(*drops), number=False),
    ]  # fmt: skip


def _defined(value: float, low: float | None = None, high: float | None = None) -> Cell:
    """A number; a dash where it is not defined, since one of the scorers gave every text the same."""
    return number(value, 2, low, high, missing=NOT_APPLICABLE)


def direction(first: pd.Series, other: pd.Series) -> str:
    """Whether two scorers see the same change: ``same``, ``opposite``, or ``opposite, clearly`` where both intervals
    of the drop leave out zero; a dash where one of them sees none at all or was not run."""
    signs = np.sign([first["drop"], other["drop"]])
    if np.isnan(signs).any() or 0.0 in signs:
        return NOT_APPLICABLE
    if signs[0] == signs[1]:
        return "same"
    clear = all(row["drop_low"] > 0 or row["drop_high"] < 0 for row in (first, other))
    return "opposite, clearly" if clear else "opposite"


def directions(rows: pd.DataFrame, first: str, other: str) -> dict[str, list[str]]:
    """The languages by :func:`direction`: how two scorers see ToxProb move in them at matched thresholds.

    ``rows`` are those of one comparison of :func:`by_scorer`.
    """
    rows = rows[rows["metric"] == "toxprob_matched"]
    sides = {name: rows[rows["scorer"] == name].set_index("language") for name in (first, other)}
    found: dict[str, list[str]] = {}
    for language in sides[first].index.intersection(sides[other].index):
        seen = direction(sides[first].loc[language], sides[other].loc[language])
        found.setdefault(seen, []).append(str(language))
    return found


def plot_drop_by_scorer(results: Results) -> Figure:
    """The drop of ToxProb in each language under every scorer, at matched thresholds; a panel a comparison."""
    import seaborn as sns

    from polydetox.results.figures import INK, MUTED, legend, panels, points, x_label

    rows, _ = by_scorer(results)
    rows = rows[rows["metric"] == "toxprob_matched"]
    names = list(dict.fromkeys(rows["scorer"]))
    figure, axes = panels(results)
    for axis, comparison in zip(axes, results.comparisons, strict=True):
        mine = rows[rows["comparison"] == comparison.name]
        for position, name in enumerate(names):
            panel = mine[mine["scorer"] == name].set_index("language").reindex(results.profile.languages)
            panel = panel.rename(columns=lambda column, name=name: str(column).replace("drop", name))
            offset = (position - (len(names) - 1) / 2) * 0.6 / max(len(names), 2)
            colour = INK if position == 0 else sns.color_palette("colorblind")[position - 1]
            points(axis, panel, name, offset, colour, "oDs^vP"[position % 6], colour, missing="")
        axis.axvline(0.0, color=MUTED, linewidth=1.0, linestyle="--")
    x_label(figure, "drop of ToxProb at matched thresholds (before minus after)")
    legend(figure, axes[0])
    return figure


def plot_agreement(agreed: pd.DataFrame) -> Figure:
    """Rank correlation, area under the curve and kappa on the base model's continuations by language, with intervals.

    ``agreed`` has the columns of ``scoring.several.PAIR_COLUMNS``; a colour a pair of scorers.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    from polydetox.results.figures import ROW, WIDTH, language_axis, legend, points, use_theme

    use_theme()
    untuned = agreed[agreed["variant"] == UNTUNED]
    languages = list(dict.fromkeys(untuned["language"]))
    shown = {"spearman": "Spearman", "auc_of_second": "AUC of the second", "kappa": "kappa"}
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 1.1 + ROW * max(len(languages), 3)), sharey=True)
    by_pair = list(untuned.groupby(["first", "second"], sort=False))
    for axis, (measure, said) in zip(axes, shown.items(), strict=True):
        language_axis(axis, languages)
        for position, ((first, second), rows) in enumerate(by_pair):
            panel = rows.set_index("language").reindex(languages)
            panel = panel[[measure, f"{measure}_low", f"{measure}_high"]]
            side = f"{first} and {second}"
            panel = panel.set_axis([side, f"{side}_low", f"{side}_high"], axis="columns")
            offset = (position - (len(by_pair) - 1) / 2) * 0.6 / max(len(by_pair), 2)
            colour = sns.color_palette("colorblind")[position % 10]
            points(axis, panel, side, offset, colour, "oDs^vP"[position % 6], colour, missing="")
        axis.set_xlabel(said)
    legend(figure, axes[0])
    return figure


def levels_table(levels: pd.DataFrame) -> PaperTable:
    """EMT and ToxProb of each variant under each scorer, as they are and on the first one's scale, by language."""
    groups = []
    for (scorer, variant), rows in levels.groupby(["scorer", "variant"], sort=False):
        wide = rows.set_index(["language", "metric"])
        lines: list[list[Cell | str]] = [
            [LANGUAGES[language], *(
                _defined(*wide.loc[(language, metric), ["value", "low", "high"]].astype(float)) for metric in TITLES
            )]
            for language in dict.fromkeys(rows["language"])
        ]  # fmt: skip
        groups.append(Group(f"{scorer}, {'base model' if variant == UNTUNED else variant}", lines))
    return PaperTable(["Language", *TITLES.values()], groups)
