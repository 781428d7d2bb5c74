"""The chapter *Why it transfers*: what its stages have left behind, as tidy tables and as tables of the report.

Everything is read by the title of a model or of a comparison, as the report prints it. What was not run is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import finished, read_json, read_parquet
from polydetox.languages import LANGUAGES
from polydetox.params import load_model
from polydetox.report.collect import ENGLISH, Results, paper_table
from polydetox.report.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, fixed, number
from polydetox.stats.correlation import line
from polydetox.stats.paired import Side, comparison_row, paired_means

PAPER = "Li, Yong and Bach (2024)"

GROUPS = {"sources": "actual sources", "control": "random neurons of the same layers"}


def _paper(quantity: str) -> float:
    """A figure that the text of the paper's section 4 gives for mGPT."""
    return float(paper_table("mechanism_mgpt").set_index("quantity").loc[quantity, "value"])


# --- what has been run ------------------------------------------------------------------------------------------


def files(results: Results, *stages: str) -> list[Path]:
    """The metrics of every finished run of some stages, which a summary notebook records as its inputs."""
    return [run.folder / "metrics.json" for run in results.stages if run.stage in stages and run.done]


def _by_language(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of each language of a stage that takes all of them; none where it was not run."""
    return read_json(folder / "metrics.json")["languages"] if finished(folder) else {}


def _models(results: Results) -> dict[str, str]:
    """The title of each model by its folder name."""
    return {model.name: model.title for model in map(load_model, results.profile.models)}


def probe_quality(results: Results) -> dict[str, pd.DataFrame]:
    """Of each model the quality of its probe: a row a classifier and part of the texts."""
    found = {}
    for name, title in _models(results).items():
        folder = paths.probe(results.profile.name, name)
        if finished(folder):
            found[title] = read_parquet(
                folder / "quality.parquet", ["classifier", "texts_of", "roc_auc", "roc_auc_low"]
            )
    return found


def sources(results: Results) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of each model its potential sources, and the figures of that stage."""
    found = {}
    for name, title in _models(results).items():
        folder = paths.value_vectors(results.profile.name, name)
        if finished(folder):
            table = read_parquet(folder / "sources.parquet", ["layer", "neuron", "cosine", "actual", "tokens"])
            found[title] = (table, read_json(folder / "metrics.json"))
    return found


def activations(results: Results) -> pd.DataFrame:
    """Mean activations before and after in every language, with intervals over prompts.

    Columns: ``comparison, language, group`` (``sources`` or ``control``) and those of ``comparison_row``.
    """
    rows = []
    for comparison in results.comparisons:
        sides = [_by_language(paths.activations(results.profile.name, comparison.model, variant))
                 for variant in ("base", comparison.variant)]  # fmt: skip
        for language in results.profile.languages:
            if not all(language in side for side in sides):
                continue
            before, after = (side[language] for side in sides)
            rng = np.random.default_rng([results.seed, list(LANGUAGES).index(language)])
            for group in GROUPS:
                pair: tuple[Side, Side] = paired_means(
                    np.array(before[f"{group}_by_prompt"]), np.array(after[f"{group}_by_prompt"]), results.samples, rng
                )
                rows.append({"comparison": comparison.title, "language": language, "group": group,
                             **comparison_row(*pair, results.confidence)})  # fmt: skip
    sides_of = [f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["comparison", "language", "group", *sides_of])


def interventions(results: Results) -> pd.DataFrame:
    """Average toxicity at every offset: ``model, unit, language, group, offset, added, toxicity, repeated``, ..."""
    rows = []
    for name, title in _models(results).items():
        measured = _by_language(paths.intervene(results.profile.name, name))
        for language in results.profile.languages:
            if metrics := measured.get(language):
                rows += [{"model": title, "unit": metrics["unit"], "language": language, **row}
                         for row in metrics["offsets"]]  # fmt: skip
    columns = ["model", "unit", "language", "group", "offset", "added", "toxicity", "scored", "prompts", "repeated"]
    return pd.DataFrame(rows, columns=columns)


def mean_intervention(table: pd.DataFrame) -> pd.DataFrame:
    """Means over languages: ``model, group, offset, toxicity, repeated``, offsets from 0 away."""
    grouped = table.groupby(["model", "group", "offset"], sort=False)[["toxicity", "repeated"]].mean().reset_index()
    return grouped.sort_values("offset", key=abs, kind="stable").reset_index(drop=True)


def neutral_examples(results: Results) -> pd.DataFrame:
    """Neutral prompts with the continuation of the untuned model as it is and with the sources switched on."""
    tables = []
    for name, title in _models(results).items():
        folder = paths.intervene(results.profile.name, name)
        if not finished(folder):
            continue
        table = read_parquet(folder / "continuations.parquet", ["prompt_id", "prompt", "group", "offset", "toxicity"])
        table = table[table["group"] == "neutral"]
        sides = {
            side: table[(table["offset"] != 0.0) == shifted].set_index("prompt_id")
            for side, shifted in (("before", False), ("after", True))
        }
        if any(map(len, sides.values())):
            shown = sides["before"][["prompt"]].assign(
                comparison=title if len(results.profile.models) > 1 else None,
                **{side: rows["continuation"] for side, rows in sides.items()},
                **{f"{side}_toxicity": rows["toxicity"] for side, rows in sides.items()},
            )
            tables.append(shown.reset_index())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def retrievals(results: Results) -> list[tuple[str, dict[str, pd.DataFrame], int]]:
    """Of each model the figures of every layer, by the name of the language, and the number of sentences."""
    found = []
    for name, title in _models(results).items():
        folder = paths.retrieval(results.profile.name, name)
        if not finished(folder):
            continue
        layers = read_parquet(folder / "layers.parquet", ["language", "layer", "accuracy"])
        tables = {LANGUAGES[language]: rows for language, rows in layers.groupby("language", sort=False)
                  if language != ENGLISH and language in results.profile.languages}  # fmt: skip
        if tables:
            found.append((title, tables, int(read_json(folder / "metrics.json")["sentences"])))
    return found


def transfers(results: Results) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of each comparison the drop and retrieval of every language, and their correlation and prediction."""
    found = {}
    for comparison in results.comparisons:
        folder = paths.transfer(results.profile.name, comparison.model, comparison.variant)
        if finished(folder):
            table = read_parquet(folder / "languages.parquet", ["language", "relative_drop", "accuracy"])
            found[comparison.title] = (table, read_json(folder / "metrics.json"))
    return found


FORECAST_COLUMNS = ["comparison", "accuracy", "points", "predicted", "drop", "error"]


def forecasts(results: Results, measured: Mapping[str, tuple[pd.DataFrame, dict[str, Any]]]) -> pd.DataFrame:
    """The mean relative drop of each comparison as the languages of all *other* models predict it.

    The only thing that is known of a model is its retrieval accuracy, so that one which was not tuned yet has a
    prediction too. ``predicted`` and ``drop`` are means over languages, ``error`` the root mean squared error over
    them; missing where no other model was measured, or this one not.
    """
    rows = []
    for comparison in results.comparisons:
        own = measured.get(comparison.title, (pd.DataFrame(columns=["language", "relative_drop"]), {}))[0]
        accuracy = _accuracies(results, comparison.model)
        others = [
            measured[other.title][0]
            for other in results.comparisons
            if other.model != comparison.model and other.title in measured
        ]
        row = dict.fromkeys(FORECAST_COLUMNS, np.nan) | {
            "comparison": comparison.title,
            "accuracy": accuracy.mean() if len(accuracy) else np.nan,
            "points": sum(map(len, others)),
            "drop": own["relative_drop"].astype(float).mean(),
        }
        pooled = pd.concat(others) if others else pd.DataFrame()
        if len(pooled) and len(accuracy):
            slope, intercept = line(pooled["accuracy"].to_numpy(float), pooled["relative_drop"].to_numpy(float))
            predicted = slope * accuracy + intercept
            row["predicted"] = predicted.mean()
            if len(own):
                error = own.set_index("language")["relative_drop"] - predicted
                row["error"] = float(np.sqrt((error**2).mean()))
        rows.append(row)
    return pd.DataFrame(rows, columns=FORECAST_COLUMNS)


def _accuracies(results: Results, model: str) -> pd.Series:
    """Retrieval accuracy, averaged over layers, of every language but English that was run."""
    measured = _by_language(paths.retrieval(results.profile.name, model))
    return pd.Series({language: measured[language]["accuracy"] for language in results.profile.languages
                      if language != ENGLISH and language in measured}, dtype=float)  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------


def probe_table(qualities: Mapping[str, pd.DataFrame]) -> PaperTable:
    """Each model's probe, and the logistic regression beside it, on held-out English texts; below, the paper's."""
    columns = ["Classifier", "Test texts", "toxic", "Validation accuracy", "ROC-AUC", "Average precision"]
    groups = []
    for title, quality in qualities.items():
        lines: list[list[Cell | str]] = []
        for name, rows in quality.groupby("classifier", sort=False):
            parts = rows.set_index("texts_of")
            test = parts.loc["test"]
            lines.append([
                str(name), number(test["texts"], 0), number(test["toxic_share"], 2),
                number(parts.loc["validation", "accuracy"], 3),
                _measured(test["roc_auc"], 3, test["roc_auc_low"], test["roc_auc_high"]),
                _measured(test["average_precision"], 3),
            ])  # fmt: skip
        groups.append(Group(title, lines))
    if not qualities:
        groups.append(Group(None, [["probe", *[Cell(NOT_RUN)] * 5]]))
    paper: list[Cell | str] = [
        "probe",
        *[Cell(NOT_APPLICABLE)] * 2,
        number(_paper("probe_validation_accuracy"), 3),
        number(_paper("probe_test_roc_auc"), 3),
        Cell(NOT_APPLICABLE),
    ]
    groups.append(Group(f"{PAPER}: mGPT, Jigsaw", [paper]))
    return PaperTable(columns, groups)


def _measured(value: float | None, digits: int, *interval: float | None) -> Cell:
    """A value, with its interval if given; a dash where it is not defined, as with texts of one label."""
    return Cell(NOT_APPLICABLE) if value is None or pd.isna(value) else number(value, digits, *interval)


def sources_table(metrics: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """How many neurons of each model are potential and actual sources."""
    columns = ["Model", "Neurons", "Potential", "Actual", "Lowest cosine", "Highest cosine", "Several scripts"]
    lines: list[list[Cell | str]] = [
        [title, number(row["neurons"], 0), number(row["potential"], 0), number(row["actual"], 0),
         number(row["lowest_cosine"], 3), number(row["highest_cosine"], 3), number(row["several_scripts"], 0)]
        for title, row in metrics.items()
    ]  # fmt: skip
    lines = lines or [["this run", *[Cell(NOT_RUN)] * 6]]
    paper: list[Cell | str] = [f"{PAPER}: mGPT", Cell(NOT_APPLICABLE), number(_paper("potential_sources"), 0),
                               number(_paper("actual_sources"), 0), *[Cell(NOT_APPLICABLE)] * 3]  # fmt: skip
    return PaperTable(columns, [Group(None, [*lines, paper])])


def shown_vectors(found: Mapping[str, tuple[pd.DataFrame, dict[str, Any]]]) -> pd.DataFrame:
    """The actual sources of each model, those nearest to the probe first."""
    tables = [
        table[table["actual"]].assign(model=title if len(found) > 1 else None) for title, (table, _) in found.items()
    ]
    return pd.concat(tables, ignore_index=True)


def activations_table(table: pd.DataFrame, results: Results) -> PaperTable:
    """Mean activations before and after in each language, and on the right the paper's."""
    paper = paper_table("figure3_neuron_activation").set_index("language")
    spans = [("", 1), ("Actual sources", 3), ("Random neurons", 2), ("Paper (mGPT)", 2)]
    columns = ["Language", "before", "after", "drop", "before", "after", "before", "after"]
    groups = []
    for comparison in results.comparisons:
        mine = table[table["comparison"] == comparison.title].set_index(["language", "group"])
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            rows = [mine.loc[(language, group)] if (language, group) in mine.index else None for group in GROUPS]
            cells = [_value(rows[0], side) for side in ("before", "after", "drop")]
            cells += [_value(rows[1], side) for side in ("before", "after")]
            cells += [Cell(fixed(paper.loc[language, side], 4)) if language in paper.index else Cell(NOT_APPLICABLE)
                      for side in ("pre_dpo", "post_dpo")]  # fmt: skip
            lines.append([LANGUAGES[language], *cells])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    return PaperTable(columns, groups, spans)


def _value(row: pd.Series | None, side: str) -> Cell:
    return Cell(NOT_RUN) if row is None else number(row[side], 4)


def intervention_table(table: pd.DataFrame, results: Results) -> PaperTable:
    """Average toxicity at each offset, by language, with the control at the last; below, the paper's."""
    if table.empty:
        lines: list[list[Cell | str]] = [["this run", *[Cell(NOT_RUN)] * 3]]
        groups, columns = [Group(None, lines)], ["Language", "0", "last offset", "random neurons"]
    else:
        groups, columns = _intervention_groups(table, results)
    width = len(columns) - 3
    paper: list[Cell | str] = [
        "mean over 17 languages",
        number(_paper("toxicity_at_offset_0"), 3),
        *[Cell(NOT_APPLICABLE)] * (width - 1),
        Cell(fixed(_paper("toxicity_at_offset_-5"), 3), "offset \N{MINUS SIGN}5"),
        Cell(NOT_APPLICABLE),
    ]
    groups.append(Group(f"{PAPER}: mGPT", [paper]))
    return PaperTable(columns, groups)


def _intervention_groups(table: pd.DataFrame, results: Results) -> tuple[list[Group], list[str]]:
    offsets = sorted(table["offset"].unique(), key=abs)
    last = offsets[-1]
    unit = " rms" if (table["unit"] == "rms").all() else ""
    columns = [
        "Language",
        *(f"{offset:g}{unit}".replace("-", "\N{MINUS SIGN}") for offset in offsets),
        "random neurons",
    ]
    groups = []
    for title in table["model"].unique():
        mine = table[table["model"] == title]
        wide = mine.pivot(index="language", columns=["group", "offset"], values="toxicity")
        keys = [*(("sources", offset) for offset in offsets), ("control", last)]
        wide = wide.reindex(columns=pd.MultiIndex.from_tuples(keys))
        lines: list[list[Cell | str]] = [["mean", *(number(value, 3) for value in wide.mean())]]
        for language in results.profile.languages:
            values = wide.loc[language] if language in wide.index else [None] * len(keys)
            lines.append([LANGUAGES[language], *(number(value, 3) for value in values)])
        groups.append(Group(title if table["model"].nunique() > 1 else "This run", lines))
    return groups, columns


def retrieval_table(results: Results) -> PaperTable:
    """Retrieval between English and each language, averaged over layers."""
    columns = ["Language", "from English", "to English", "mean", "best layer", "aligned", "other"]
    spans = [("", 1), ("Accuracy", 4), ("Mean cosine", 2)]
    groups = []
    for name, title in _models(results).items():
        lines: list[list[Cell | str]] = []
        measured = _by_language(paths.retrieval(results.profile.name, name))
        for language in results.profile.languages:
            if language == ENGLISH:
                continue
            if language not in measured:
                lines.append([LANGUAGES[language], *[Cell(NOT_RUN)] * 6])
                continue
            row = measured[language]
            lines.append([
                LANGUAGES[language], *(number(row[key], 2) for key in ("from_english", "to_english", "accuracy")),
                Cell(fixed(row["best_accuracy"], 2), f"layer {row['best_layer']}"),
                number(row["aligned_cosine"], 3), number(row["other_cosine"], 3),
            ])  # fmt: skip
        groups.append(Group(title if len(results.profile.models) > 1 else None, lines or [["", *[Cell(NOT_RUN)] * 6]]))
    return PaperTable(columns, groups, spans)


def correlation_table(metrics: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """Pearson's r of each comparison, from accuracy and from the aligned cosine; below, the paper's."""
    columns = ["Against the relative drop of EMT", "Languages", "Pearson's r", "p", "without one language"]
    groups = []
    for title, row in metrics.items():
        lines: list[list[Cell | str]] = []
        for key, said in (("accuracy", "retrieval accuracy"), ("aligned_cosine", "mean cosine of aligned pairs")):
            found = row[key]
            if found["r"] is None:
                lines.append([said, number(found["points"], 0), *[Cell(NOT_APPLICABLE)] * 3])
                continue
            span = f"{fixed(found['least_without_one'], 2)} to {fixed(found['most_without_one'], 2)}"
            lines.append([said, number(found["points"], 0), number(found["r"], 2, found["low"], found["high"]),
                          number(found["p"], 3), Cell(span)])  # fmt: skip
        groups.append(Group(title, lines))
    if not metrics:
        groups.append(Group(None, [["this run", *[Cell(NOT_RUN)] * 4]]))
    paper: list[list[Cell | str]] = [
        [f"{row.model} ({row.figure})", Cell(NOT_APPLICABLE), Cell(fixed(row.pearson_r, 2)), Cell(f"< {row.p_below:g}"),
         Cell(NOT_APPLICABLE)]
        for row in paper_table("retrieval_correlation").itertuples()
    ]  # fmt: skip
    groups.append(Group(PAPER, paper))
    return PaperTable(columns, groups)


def prediction_table(found: Mapping[str, tuple[pd.DataFrame, Mapping[str, Any]]]) -> PaperTable:
    """The relative drop of each language as all others predict it, and as it was measured."""
    columns = ["Language", "Retrieval accuracy", "Predicted drop", "Measured drop", "Error"]
    groups = []
    for title, (table, metrics) in found.items():
        predicted = metrics["accuracy"]["predicted"]
        lines: list[list[Cell | str]] = []
        for position, row in enumerate(table.itertuples()):
            guess = None if predicted is None else predicted[position]
            lines.append([
                LANGUAGES[str(row.language)], number(row.accuracy, 2),
                Cell(NOT_APPLICABLE) if guess is None else number(guess, 2), number(row.relative_drop, 2),
                Cell(NOT_APPLICABLE) if guess is None else number(row.relative_drop - guess, 2),
            ])  # fmt: skip
        if predicted is not None:
            for said, key in (("error of the line", "error"), ("error of the mean of the others", "mean_error")):
                lines.append([f"root mean squared {said}", *[Cell("")] * 3, number(metrics["accuracy"][key], 3)])
        groups.append(Group(title if len(found) > 1 else None, lines or [["", *[Cell(NOT_RUN)] * 4]]))
    return PaperTable(columns, groups or [Group(None, [["this run", *[Cell(NOT_RUN)] * 4]])])


def forecast_table(table: pd.DataFrame) -> PaperTable:
    """The mean drop of each model as the other models predict it; a dash where no other model was run."""
    columns = ["Model", "Mean retrieval accuracy", "Points of other models", "Predicted drop", "Measured drop",
               "Error over languages"]  # fmt: skip
    lines: list[list[Cell | str]] = [
        [row.comparison, number(row.accuracy, 2), number(row.points, 0), _measured(row.predicted, 2),
         number(row.drop, 2, missing=NOT_MEASURED), _measured(row.error, 3)]
        for row in table.itertuples()
    ]  # fmt: skip
    return PaperTable(columns, [Group(None, lines)])
