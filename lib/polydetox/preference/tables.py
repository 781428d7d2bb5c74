"""The tables of preference pairs, vocabularies, DPO training and ablations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polydetox.preference.ablations import MEAN
from polydetox.results.collect import METRICS, Results
from polydetox.results.stages import StageRun, comparisons
from polydetox.results.tables import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Cell, Group, PaperTable, number

Lines = list[list[Cell | str]]


def training_table(results: Results) -> PaperTable:
    """Each training: its pairs, method and steps, and the held-out loss and accuracy of the checkpoint kept."""
    columns = ["Training", "Method", "Learning rate", "Pairs", "Held out", "Steps", "Best step", "Held-out loss",
               "Held-out accuracy"]  # fmt: skip
    digits = {"pairs_train": 0, "pairs_held_out": 0, "steps": 0, "best_step": 0, "held_out_loss": 3,
              "held_out_accuracy": 2}  # fmt: skip
    ran = results.stage_metrics("dpo", "variant")
    lines: Lines = []
    for comparison in comparisons(results.profile, ablations=True):
        if comparison.variant not in results.profile.variants:
            continue  # a published checkpoint, which is not trained here
        if metrics := ran.get((comparison.model, comparison.variant)):
            rate = Cell(f"{metrics['learning_rate']:.0e}".replace("e-0", "e-"))
            figures = [number(metrics[key], places) for key, places in digits.items()]
            lines.append([comparison.title, str(metrics["method"]), rate, *figures])
        else:
            lines.append([comparison.title, NOT_RUN, *[Cell(NOT_RUN)] * 7])
    return PaperTable(columns, [Group(None, lines)])


def pairs_table(results: Results) -> PaperTable:
    """Each set of preference pairs, and for on-policy ones the mean toxicity of both sides."""
    columns = ["Pairs", "Prompts", "Pairs made", "Margin", "Toxicity of the chosen", "of the rejected"]
    digits = {"prompts": 0, "pairs": 0, "margin": 2, "chosen_mean": 2, "rejected_mean": 2}
    return _stage_table(results, "pairs", columns, digits)


def trim_table(results: Results) -> PaperTable:
    """How much of each vocabulary was kept."""
    columns = ["Model", "Tokens", "Tokens kept", "Fraction kept", "Next-token probability kept"]
    digits = {"vocabulary_full": 0, "vocabulary_kept": 0, "share_kept": 2, "probability_mass_kept": 3}
    return _stage_table(results, "trim", columns, digits)


def _stage_table(results: Results, stage: str, columns: list[str], digits: Mapping[str, int]) -> PaperTable:
    """A row a run of a stage: what it is about, and some of its metrics; a dash where one was not measured."""

    def line(run: StageRun) -> list[Cell | str]:
        metrics = ran.get((run.model, run.kind))
        said = ", ".join(part for part in (run.kind, results.models.get(run.model, run.model)) if part)
        return [said, *(number(metrics[key], places, missing=NOT_APPLICABLE) if metrics else Cell(NOT_RUN)
                        for key, places in digits.items())]  # fmt: skip

    ran = results.stage_metrics(stage, "kind")
    return PaperTable(columns, [Group(None, [line(run) for run in results.stages if run.stage == stage])])


# --- ablations --------------------------------------------------------------------------------------------------

SHOWN = ["emt", "toxprob", "perplexity", "distinct_2", "language_rate"]


def ablation_table(
    table: pd.DataFrame, *, differences: bool = False, below: Mapping[str, pd.Series] | None = None
) -> PaperTable:
    """Each configuration of each family after the tuning, beside the base model.

    ``differences`` adds those from the reference; ``below`` further lines by heading: values by family and metric.
    """
    groups = []
    for family, rows in _means(table).groupby("family", sort=False):
        first, by_label = rows.iloc[0], rows.set_index(["label", "metric"])
        labels = list(rows["label"].unique())
        base = next((label for label in labels if pd.notna(by_label.loc[(label, "emt"), "before"])), labels[0])
        ran = [label for label in labels if by_label.loc[(label, "emt"), "languages"]]
        lines: Lines = [["base model", *_cells(by_label.loc[base], "before")]]
        lines += [[label, *_cells(by_label.loc[label], "after")] for label in labels]
        for heading, values in (below or {}).items():
            figures = (
                number(values.get((family, metric), float("nan")), METRICS[metric].digits + 1) for metric in SHOWN
            )
            lines.append([heading, *figures])
        if differences:
            lines += [[f"{label} less {first['reference']}", *_cells(by_label.loc[label], "difference",
                                                                      both={label, first["reference"]} <= set(ran))]
                      for label in labels if label != first["reference"]]  # fmt: skip
        prompts, continuations = rows[["prompts", "continuations"]].max()
        ground = (f": mean over {rows['languages'].max()} languages, {prompts} prompts each, {continuations} "
                  "continuations a prompt") if prompts else ""  # fmt: skip
        groups.append(Group(f"{family}{ground}", lines))
    return _table(["", *(METRICS[metric].title for metric in SHOWN)], groups)


def sets_table(table: pd.DataFrame) -> PaperTable:
    """Each configuration before and after, in the languages that its family shares: EMT and ToxProb."""
    sides, metrics = ["before", "after", "drop"], ["emt", "toxprob"]
    groups = []
    for family, rows in _means(table).groupby("family", sort=False):
        lines: Lines = []
        for label, mine in rows.groupby("label", sort=False):
            by_metric, prompts = mine.set_index("metric"), mine["prompts"].max()
            cells = [cell for metric in metrics for side in sides for cell in _cells(by_metric, side, [metric])]
            lines.append([str(label), Cell(str(prompts) if prompts else NOT_APPLICABLE), *cells])
        languages = rows["languages"].max()
        groups.append(Group(f"{family}, mean over {languages} languages" if languages else family, lines))
    spans = [("", 2), *((METRICS[metric].title, len(sides)) for metric in metrics)]
    return _table(["", "Prompts", *sides * len(metrics)], groups, spans)


def perplexity_table(quantiles: pd.DataFrame) -> PaperTable:
    """Quantiles of the perplexity before and after, a row a comparison and side, and the fraction of its tail.

    Columns: ``continuations``, the quantiles by their fraction, and last the fraction above a limit, by its name.
    """
    tail = str(quantiles.columns[-1])
    asked = [each for each in quantiles if isinstance(each, float)]
    groups = [
        Group(str(title), [[str(side), number(row["continuations"], 0), *(number(row[each], 1) for each in asked),
                            Cell(f"{row[tail]:.1%}")] for (_, side), row in rows.iterrows()])
        for title, rows in quantiles.groupby(level=0, sort=False)
    ]  # fmt: skip
    return _table(["", "Continuations", *(f"{each:.0%}" for each in asked), tail], groups)


def _means(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["language"] == MEAN]


def _cells(row: pd.DataFrame, side: str, metrics: list[str] = SHOWN, *, both: bool = True) -> list[Cell]:
    """One side of some metrics with its interval; ``row`` has a line a metric."""
    ran = both and bool(row["languages"].max())
    return [number(row.loc[metric, side], METRICS[metric].digits, row.loc[metric, f"{side}_low"],
                   row.loc[metric, f"{side}_high"], missing=NOT_MEASURED if ran else NOT_RUN)
            for metric in metrics]  # fmt: skip


def _table(columns: list[str], groups: list[Group], spans: Any = ()) -> PaperTable:
    return PaperTable(columns, groups or [Group(None, [["", *[Cell(NOT_RUN)] * (len(columns) - 1)]])], spans)
