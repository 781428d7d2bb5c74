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
from polydetox.metrics.diversity import repetition
from polydetox.results.collect import Results
from polydetox.results.published import PAPER, paper_table
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, fixed, number
from polydetox.stats.paired import comparison_row, paired_means

GROUPS = {"sources": "actual sources", "random": "random neurons of the same layers"}


def by_offset(table: pd.DataFrame) -> pd.DataFrame:
    """Each group and offset in brief: ``group, offset, added, toxicity`` (average), ``scored, prompts, repeated``.

    ``repeated`` is the mean fraction of repeated words, which tells a model that writes better from one that broke.
    """
    shifted = table[table["group"] != "neutral"].assign(repeated=table["continuation"].map(repetition))
    groups = shifted.groupby(["group", "offset"], sort=False)
    result = groups.agg(added=("added", "first"), toxicity=("toxicity", "mean"), scored=("toxicity", "count"),
                        prompts=("prompt", "size"), repeated=("repeated", "mean"))  # fmt: skip
    return result.reset_index()


# --- what has been run ------------------------------------------------------------------------------------------


def files(results: Results, *stages: str) -> list[Path]:
    """The metrics of every finished run of some stages, which a summary notebook records as its inputs."""
    return [run.folder / "metrics.json" for run in results.stages if run.stage in stages and run.done]


def folders(results: Results, stage: str) -> dict[str, Path]:
    """Of each model the folder of a stage that was run."""
    found = {title: results.folder(stage, model=name) for name, title in results.models.items()}
    return {title: folder for title, folder in found.items() if folder}


def probe_quality(results: Results) -> dict[str, pd.DataFrame]:
    """Of each model the quality of its probe: a row a classifier and part of the texts."""
    columns = ["classifier", "texts_of", "roc_auc", "roc_auc_low"]
    return {title: read_parquet(folder / "quality.parquet", columns)
            for title, folder in folders(results, "probe").items()}  # fmt: skip


def sources(results: Results) -> dict[str, tuple[pd.DataFrame, dict[str, Any]]]:
    """Of each model its potential sources, and the figures of that stage."""
    columns = ["layer", "neuron", "cosine", "actual", "tokens"]
    return {title: (read_parquet(folder / "sources.parquet", columns), read_json(folder / "metrics.json"))
            for title, folder in folders(results, "value_vectors").items()}  # fmt: skip


def activations(results: Results) -> pd.DataFrame:
    """Mean activations before and after in every language, with intervals over prompts.

    Columns: ``comparison, language, group`` (see ``GROUPS``) and those of ``comparison_row``.
    """
    rows = []
    for comparison in results.comparisons:
        before, after = (results.by_language_of("activations", model=comparison.model, variant=variant)
                         for variant in ("base", comparison.variant))  # fmt: skip
        for language in results.profile.languages:
            if language not in before or language not in after:
                continue
            rng = np.random.default_rng([results.seed, list(LANGUAGES).index(language)])
            for group in GROUPS:
                first, second = (np.array(side[language][f"{group}_by_prompt"]) for side in (before, after))
                found = comparison_row(*paired_means(first, second, results.samples, rng), results.confidence)
                rows.append({"comparison": comparison.title, "language": language, "group": group, **found})
    sides_of = [f"{side}{end}" for side in ("before", "after", "drop") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["comparison", "language", "group", *sides_of])


def interventions(results: Results) -> pd.DataFrame:
    """Average toxicity at every offset: ``model, unit, language, group, offset, added, toxicity, repeated``, ..."""
    rows = []
    for name, title in results.models.items():
        measured = results.by_language_of("intervene", model=name)
        for language in filter(measured.__contains__, results.profile.languages):
            metrics = measured[language]
            rows += [{"model": title, "unit": metrics["unit"], "language": language, **row}
                     for row in metrics["offsets"]]  # fmt: skip
    columns = ["model", "unit", "language", "group", "offset", "added", "toxicity", "scored", "prompts", "repeated"]
    return pd.DataFrame(rows, columns=columns)


def neutral_examples(results: Results) -> pd.DataFrame:
    """Neutral prompts with the continuation of the base model as it is and with the sources switched on."""
    tables = [pd.DataFrame()]
    for title, folder in folders(results, "intervene").items():
        table = read_parquet(folder / "continuations.parquet", ["prompt_id", "prompt", "group", "offset", "toxicity"])
        table = table[table["group"] == "neutral"]
        table = table.assign(side=np.where(table["offset"] == 0.0, "before", "after"))
        wide = table.pivot(index=["prompt_id", "prompt"], columns="side", values=["continuation", "toxicity"])
        wide.columns = [side if name == "continuation" else f"{side}_{name}" for name, side in wide.columns]
        tables.append(wide.reset_index().assign(comparison=title if len(results.profile.models) > 1 else None))
    return pd.concat(tables, ignore_index=True)


# --- tables -----------------------------------------------------------------------------------------------------


def _of_paper(label: str, width: int, quantities: Mapping[int, tuple[str, int]]) -> list[Cell | str]:
    """A row of figures that the text of the paper's section 4 gives for mGPT: by column, their name and decimals."""
    table = paper_table("mechanism_mgpt").set_index("quantity")["value"]
    found = {column: number(float(table[name]), digits) for column, (name, digits) in quantities.items()}
    return [label, *(found.get(column, Cell(NOT_APPLICABLE)) for column in range(1, width))]


def probe_table(qualities: Mapping[str, pd.DataFrame]) -> PaperTable:
    """Each model's probe, and the logistic regression beside it, on held-out English texts; below, the paper's."""
    columns = ["Classifier", "Test texts", "toxic", "Validation accuracy", "ROC-AUC", "Average precision"]
    groups = [] if qualities else [Group(None, [["probe", *[Cell(NOT_RUN)] * 5]])]
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
    paper = _of_paper("probe", len(columns), {3: ("probe_validation_accuracy", 3), 4: ("probe_test_roc_auc", 3)})
    return PaperTable(columns, [*groups, Group(f"{PAPER}: mGPT, Jigsaw", [paper])])


def sources_table(metrics: Mapping[str, Mapping[str, Any]]) -> PaperTable:
    """How many neurons of each model are potential and actual sources."""
    columns = {"Neurons": ("neurons", 0), "Potential": ("potential", 0), "Actual": ("actual", 0),
               "Lowest cosine": ("lowest_cosine", 3), "Highest cosine": ("highest_cosine", 3),
               "Several scripts": ("several_scripts", 0)}  # fmt: skip
    lines: list[list[Cell | str]] = [
        [title, *(number(row[name], digits) for name, digits in columns.values())] for title, row in metrics.items()
    ]
    lines = lines or [["this run", *[Cell(NOT_RUN)] * 6]]
    paper = _of_paper(f"{PAPER}: mGPT", 7, {2: ("potential_sources", 0), 3: ("actual_sources", 0)})
    return PaperTable(["Model", *columns], [Group(None, [*lines, paper])])


def activations_table(table: pd.DataFrame, results: Results) -> PaperTable:
    """Mean activations before and after in each language, and on the right the paper's."""
    paper = paper_table("figure3_neuron_activation").set_index("language")
    spans = [("", 1), ("Actual sources", 3), ("Random neurons", 2), ("Paper (mGPT)", 2)]
    columns = ["Language", "before", "after", "drop", "before", "after", "before", "after"]
    wanted = [("sources", side) for side in ("before", "after", "drop")]
    wanted += [("random", side) for side in ("before", "after")]
    groups = []
    for comparison in results.comparisons:
        mine = table[table["comparison"] == comparison.title].set_index(["language", "group"])
        lines: list[list[Cell | str]] = []
        for language in results.profile.languages:
            cells = [number(mine.loc[(language, group), side], 4) if (language, group) in mine.index else Cell(NOT_RUN)
                     for group, side in wanted]  # fmt: skip
            cells += [Cell(fixed(paper.loc[language, side], 4)) if language in paper.index else Cell(NOT_APPLICABLE)
                      for side in ("pre_dpo", "post_dpo")]  # fmt: skip
            lines.append([LANGUAGES[language], *cells])
        groups.append(Group(comparison.title if len(results.comparisons) > 1 else None, lines))
    return PaperTable(columns, groups, spans)


def intervention_table(table: pd.DataFrame, results: Results) -> PaperTable:
    """Average toxicity at each offset, by language, with the random neurons at the last; below, the paper's."""
    offsets = sorted(table["offset"].unique(), key=abs)
    unit = " rms" if (table["unit"] == "rms").all() else ""
    titles = [f"{offset:g}{unit}".replace("-", "\N{MINUS SIGN}") for offset in offsets] or ["0", "last offset"]
    columns = ["Language", *titles, "random neurons"]
    groups = [] if offsets else [Group(None, [["this run", *[Cell(NOT_RUN)] * 3]])]
    for title, mine in table.groupby("model", sort=False):
        keys = [*(("sources", offset) for offset in offsets), ("random", offsets[-1])]
        wide = mine.pivot(index="language", columns=["group", "offset"], values="toxicity")
        wide = wide.reindex(index=results.profile.languages, columns=pd.MultiIndex.from_tuples(keys))
        lines: list[list[Cell | str]] = [["mean", *(number(value, 3) for value in wide.mean())]]
        lines += [[LANGUAGES[str(language)], *(number(value, 3) for value in row)]
                  for language, row in zip(wide.index, wide.to_numpy(), strict=True)]  # fmt: skip
        groups.append(Group(str(title) if table["model"].nunique() > 1 else "This run", lines))
    last = len(columns) - 2
    paper = _of_paper("mean over 17 languages", len(columns),
                      {1: ("toxicity_at_offset_0", 3), last: ("toxicity_at_offset_-5", 3)})  # fmt: skip
    paper[last] = Cell(paper[last].text, "offset \N{MINUS SIGN}5")  # type: ignore[union-attr]
    return PaperTable(columns, [*groups, Group(f"{PAPER}: mGPT", [paper])])
