"""Retrieval across languages and its correlation with the drop of toxicity: results and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import ENGLISH, Results
from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, fixed, number
from polydetox.stats.correlation import line


def retrievals(results: Results) -> list[tuple[str, dict[str, pd.DataFrame], int]]:
    """Of each model the figures of every layer, by language, and the number of sentences."""
    found = []
    for name, title in results.models.items():
        folder = results.folder("retrieval", model=name)
        if folder is None:
            continue
        layers = read_parquet(folder / "layers.parquet", ["language", "layer", "accuracy"])
        tables = {str(language): rows for language, rows in layers.groupby("language", sort=False)
                  if language != ENGLISH and language in results.profile.languages}  # fmt: skip
        if tables:
            found.append((title, tables, int(read_json(folder / "metrics.json")["sentences"])))
    return found


def transfers(results: Results) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of each comparison the drop and retrieval of every language, and their correlation and prediction."""
    found = {}
    for comparison in results.comparisons:
        if folder := results.folder("transfer", model=comparison.model, variant=comparison.variant):
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
    measured = results.by_language_of("retrieval", model=model)
    return pd.Series({language: measured[language]["accuracy"] for language in results.profile.languages
                      if language != ENGLISH and language in measured}, dtype=float)  # fmt: skip


def retrieval_table(results: Results) -> PaperTable:
    """Retrieval between English and each language, averaged over layers."""
    columns = ["Language", "from English", "to English", "mean", "best layer", "aligned", "other"]
    spans = [("", 1), ("Accuracy", 4), ("Mean cosine", 2)]
    groups = []
    for name, title in results.models.items():
        lines: list[list[Cell | str]] = []
        measured = results.by_language_of("retrieval", model=name)
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
        [row.comparison, number(row.accuracy, 2), number(row.points, 0),
         number(row.predicted, 2, missing=NOT_APPLICABLE), number(row.drop, 2, missing=NOT_MEASURED),
         number(row.error, 3, missing=NOT_APPLICABLE)]
        for row in table.itertuples()
    ]  # fmt: skip
    return PaperTable(columns, [Group(None, lines)])
