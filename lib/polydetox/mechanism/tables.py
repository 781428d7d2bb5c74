"""The chapter *Why it transfers*: what its stages have left behind, as tidy tables and as tables of the report.

Everything is read by the title of a model or of a comparison, as the report prints it. What was not run is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import read_json, read_parquet
from polydetox.core.languages import LANGUAGES
from polydetox.results.collect import Results
from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, fixed, number
from polydetox.stats.paired import Side, comparison_row, paired_means

GROUPS = {"sources": "actual sources", "control": "random neurons of the same layers"}


def _paper(quantity: str) -> float:
    """A figure that the text of the paper's section 4 gives for mGPT."""
    return float(paper_table("mechanism_mgpt").set_index("quantity").loc[quantity, "value"])


# --- what has been run ------------------------------------------------------------------------------------------


def files(results: Results, *stages: str) -> list[Path]:
    """The metrics of every finished run of some stages, which a summary notebook records as its inputs."""
    return [run.folder / "metrics.json" for run in results.stages if run.stage in stages and run.done]


def probe_quality(results: Results) -> dict[str, pd.DataFrame]:
    """Of each model the quality of its probe: a row a classifier and part of the texts."""
    found = {}
    for name, title in results.models.items():
        if folder := results.folder("probe", model=name):
            found[title] = read_parquet(
                folder / "quality.parquet", ["classifier", "texts_of", "roc_auc", "roc_auc_low"]
            )
    return found


def sources(results: Results) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of each model its potential sources, and the figures of that stage."""
    found = {}
    for name, title in results.models.items():
        if folder := results.folder("value_vectors", model=name):
            table = read_parquet(folder / "sources.parquet", ["layer", "neuron", "cosine", "actual", "tokens"])
            found[title] = (table, read_json(folder / "metrics.json"))
    return found


def activations(results: Results) -> pd.DataFrame:
    """Mean activations before and after in every language, with intervals over prompts.

    Columns: ``comparison, language, group`` (``sources`` or ``control``) and those of ``comparison_row``.
    """
    rows = []
    for comparison in results.comparisons:
        sides = [results.by_language_of("activations", model=comparison.model, variant=variant)
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
    for name, title in results.models.items():
        measured = results.by_language_of("intervene", model=name)
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
    for name, title in results.models.items():
        folder = results.folder("intervene", model=name)
        if folder is None:
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
                str(name), number(test["texts"], 0), number(test["toxic_fraction"], 2),
                number(parts.loc["validation", "accuracy"], 3),
                number(test["roc_auc"], 3, test["roc_auc_low"], test["roc_auc_high"], missing=NOT_APPLICABLE),
                number(test["average_precision"], 3, missing=NOT_APPLICABLE),
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
