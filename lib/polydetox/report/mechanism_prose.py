"""The sentences of the chapter *Why it transfers*, each chosen by the numbers of the run."""

from __future__ import annotations

import pandas as pd

from polydetox.languages import LANGUAGES
from polydetox.mechanism import tables as mechanism
from polydetox.report.collect import ENGLISH, Results
from polydetox.report.tables import fixed, listing, significance
from polydetox.transfer import tables as transfer

_NOT_RUN = "Not run."


def mechanism_sentences(results: Results) -> dict[str, str]:
    """Every variable that ``book/why.qmd`` takes from the results."""
    activations = mechanism.activations(results)
    return {
        "probe_sentence": _probe(results),
        "sources_sentence": _sources(results),
        "activations_sentence": _activations(activations),
        "intervention_sentence": _intervention(mechanism.interventions(results)),
        "retrieval_sentence": _retrieval(results),
        "correlation_sentence": _correlation(results),
        "prediction_sentence": _prediction(results),
    }


def _probe(results: Results) -> str:
    said = []
    for title, quality in mechanism.probe_quality(results).items():
        rows = quality[quality["classifier"] == "probe"].set_index("texts_of")[["roc_auc", "roc_auc_low"]].astype(float)
        text = (
            f"The probe of {title} has an area under the ROC curve of {_or_undefined(rows.loc['test', 'roc_auc'])} on "
            "English texts"
        )
        others = rows.drop(["test", "validation", ENGLISH], errors="ignore").dropna(subset="roc_auc")
        if len(others):
            areas, certain = others["roc_auc"], int((others["roc_auc_low"] > 0.5).sum())
            text += (
                f" that it was not trained on, and in {len(others)} other languages, of which it saw none, of "
                f"{fixed(areas.mean(), 2)} on average, from {fixed(areas.min(), 2)} ({LANGUAGES[areas.idxmin()]}) to "
                f"{fixed(areas.max(), 2)} ({LANGUAGES[areas.idxmax()]}); in {certain} of them the interval lies above "
                "chance"
            )
        said.append(f"{text}.")
    return " ".join(said) or _NOT_RUN


def _or_undefined(value: float) -> str:
    return "no defined value" if pd.isna(value) else fixed(value, 2)


def _sources(results: Results) -> str:
    said = [
        f"Of the {metrics['neurons']:,} MLP neurons of {title}, the {metrics['potential']} nearest to the probe are "
        f"potential sources, and {metrics['actual']} of them are actual ones; "
        f"{metrics['several_scripts'] or 'none'} of these promote tokens of more than one script."
        for title, (_, metrics) in mechanism.sources(results).items()
    ]
    return " ".join(said) or _NOT_RUN


def _activations(table: pd.DataFrame) -> str:
    said = []
    for title, mine in table.groupby("comparison", sort=False):
        means = mine.groupby("group")[["before", "after"]].mean()
        rows = mine[mine["group"] == "sources"]
        lower, certain = int((rows["drop"] > 0).sum()), int((rows["drop_low"] > 0).sum())
        went = {group: f"from {fixed(row['before'], 4)} to {fixed(row['after'], 4)}" for group, row in means.iterrows()}
        said.append(
            f"In {title} the mean activation of the actual sources goes {went['sources']} with tuning, that of the "
            f"random neurons {went['control']}; the sources' is lower after tuning in {lower} of {len(rows)} "
            f"languages, in {certain} of them by more than the interval allows for chance."
        )
    return " ".join(said) or _NOT_RUN


def _intervention(table: pd.DataFrame) -> str:
    means = mechanism.mean_intervention(table)
    said = []
    for title, mine in means.groupby("model", sort=False):
        last = mine["offset"].iloc[-1]
        rows = mine.set_index(["group", "offset"])
        first, shifted = rows.loc[("sources", 0.0)], rows.loc[("sources", last)]
        text = (
            f"Shifting the actual sources of {title} to the largest offset takes the average toxicity, over languages, "
            f"from {fixed(first['toxicity'], 3)} to {fixed(shifted['toxicity'], 3)}"
        )
        if ("control", last) in rows.index:
            control = rows.loc[("control", last)]
            text += f"; shifting as many random neurons as far leaves it at {fixed(control['toxicity'], 3)}"
        said.append(
            f"{text}. The share of repeated words goes from {fixed(first['repeated'], 2)} to "
            f"{fixed(shifted['repeated'], 2)} on the way."
        )
    return " ".join(said) or _NOT_RUN


def _retrieval(results: Results) -> str:
    said = []
    for title, tables, sentences in transfer.retrievals(results):
        means = pd.Series({language: table["accuracy"].mean() for language, table in tables.items()})
        said.append(
            f"Among {sentences} parallel sentences, {title} finds the translation with an accuracy of "
            f"{fixed(means.mean(), 2)}, averaged over layers and {len(means)} languages (chance is "
            f"{fixed(1.0 / sentences, 2)}): from {fixed(means.min(), 2)} in {means.idxmin()} to "
            f"{fixed(means.max(), 2)} in {means.idxmax()}."
        )
    return " ".join(said) or _NOT_RUN


def _correlation(results: Results) -> str:
    said = []
    for title, (_, metrics) in transfer.transfers(results).items():
        found = metrics["accuracy"]
        if found["r"] is None:
            few = "there are too few languages for a correlation"
            same = (
                f"no correlation is defined: the drop or the retrieval is the same in all {found['points']} languages"
            )
            said.append(f"For {title} {few if found['points'] < 4 else same}.")
            continue
        told = found["low"] > 0 or found["high"] < 0
        said.append(
            f"For {title}, the relative drop of EMT in {found['points']} languages goes with retrieval accuracy at "
            f"r = {fixed(found['r'], 2)} ({significance(found['p'])}; bootstrap interval {fixed(found['low'], 2)} to "
            f"{fixed(found['high'], 2)}), which the interval {'tells' if told else 'does not tell'} from no "
            "correlation; "
            f"without one language or another, r lies between {fixed(found['least_without_one'], 2)} and "
            f"{fixed(found['most_without_one'], 2)}."
        )
    return " ".join(said) or _NOT_RUN


def _prediction(results: Results) -> str:
    better, worse = [], []
    for title, (_, metrics) in transfer.transfers(results).items():
        found = metrics["accuracy"]
        if found["error"] is not None:
            words = f"{title} ({fixed(found['error'], 3)} against {fixed(found['mean_error'], 3)})"
            (better if found["error"] < found["mean_error"] else worse).append(words)
    said = []
    if better:
        said.append(
            f"Retrieval accuracy predicts the drop better than the mean of the other languages for {listing(better)}."
        )
    if worse:
        said.append(
            f"Retrieval accuracy predicts no better than the mean of the other languages does for {listing(worse)}."
        )
    return " ".join(said) or _NOT_RUN
