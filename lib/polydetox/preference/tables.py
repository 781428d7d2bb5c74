"""The tables of preference pairs, vocabularies and DPO training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polydetox.results.collect import Results
from polydetox.results.stages import comparisons
from polydetox.results.tables import NOT_APPLICABLE, NOT_RUN, Cell, Group, PaperTable, number

if TYPE_CHECKING:
    pass


def training_table(results: Results) -> PaperTable:
    """Each training: its pairs, method and steps, and the held-out loss and accuracy of the checkpoint kept."""
    columns = ["Training", "Method", "Learning rate", "Pairs", "Held out", "Steps", "Best step", "Held-out loss",
               "Held-out accuracy"]  # fmt: skip
    ran = results.stage_metrics("dpo", "variant")
    lines: list[list[Cell | str]] = []
    for comparison in comparisons(results.profile, ablations=True):
        if comparison.variant not in results.profile.variants:
            continue  # a published checkpoint, which is not trained here
        metrics = ran.get((comparison.model, comparison.variant))
        if metrics is None:
            lines.append([comparison.title, NOT_RUN, *[Cell(NOT_RUN)] * 7])
            continue
        lines.append([
            comparison.title, str(metrics["method"]), Cell(f"{metrics['learning_rate']:.0e}".replace("e-0", "e-")),
            number(metrics["pairs_train"], 0), number(metrics["pairs_held_out"], 0), number(metrics["steps"], 0),
            number(metrics["best_step"], 0), number(metrics["held_out_loss"], 3),
            number(metrics["held_out_accuracy"], 2),
        ])  # fmt: skip
    return PaperTable(columns, [Group(None, lines)])


def pairs_table(results: Results) -> PaperTable:
    """Each set of preference pairs, and for on-policy ones the mean toxicity of both sides."""
    columns = ["Pairs", "Prompts", "Pairs made", "Margin", "Toxicity of the chosen", "of the rejected"]
    ran = results.stage_metrics("pairs", "kind")
    lines: list[list[Cell | str]] = []
    for run in results.stages:
        if run.stage != "pairs":
            continue
        said = f"{run.kind}, {results.models.get(run.model, run.model)}"
        metrics = ran.get((run.model, run.kind))
        if metrics is None:
            lines.append([said, *[Cell(NOT_RUN)] * 5])
            continue
        measured = [Cell(NOT_APPLICABLE) if metrics[key] is None else number(metrics[key], 2)
                    for key in ("margin", "chosen_mean", "rejected_mean")]  # fmt: skip
        lines.append([said, number(metrics["prompts"], 0), number(metrics["pairs"], 0), *measured])
    return PaperTable(columns, [Group(None, lines)])


def trim_table(results: Results) -> PaperTable:
    """How much of each vocabulary was kept."""
    columns = ["Model", "Tokens", "Tokens kept", "Share kept", "Next-token probability kept"]
    ran = results.stage_metrics("trim", "variant")
    lines: list[list[Cell | str]] = []
    for run in results.stages:
        if run.stage == "trim":
            metrics = ran.get((run.model, None))
            lines.append([results.models.get(run.model, run.model), *(
                [Cell(NOT_RUN)] * 4 if metrics is None else
                [number(metrics["vocabulary_full"], 0), number(metrics["vocabulary_kept"], 0),
                 number(metrics["share_kept"], 2), number(metrics["probability_mass_kept"], 3)]
            )])  # fmt: skip
    return PaperTable(columns, [Group(None, lines)])
