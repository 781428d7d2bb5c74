"""The sentences and numbers that the report's prose takes from the results, for ``_variables.yml``.

Nothing that interprets a result is written before the run: each sentence here is chosen by the numbers, and where a
stage was not run the sentence says so. A value is one line of Markdown without line breaks; keys have no dots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.artifacts import read_json
from polydetox.data.catalogue import sources
from polydetox.languages import LANGUAGES
from polydetox.metrics.evaluate import OUTLIER
from polydetox.params import load_model
from polydetox.preference.ablations import stored_sentences
from polydetox.report.collect import METRICS, Comparison, Results
from polydetox.report.mechanism_prose import mechanism_sentences
from polydetox.report.sections import duration
from polydetox.report.tables import change, fixed, listing

UNTUNED_JUDGE = "untuned"


def variables(results: Results) -> dict[str, str]:
    """Every variable that ``book/*.qmd`` may use, whatever has been run."""

    profile = results.profile
    return {
        "profile_name": profile.name,
        "profile_title": profile.title,
        "profile_description": profile.description.strip(),
        "model_titles": listing([load_model(model).title for model in profile.models]),
        "language_count": str(len(profile.languages)),
        "language_names": listing([LANGUAGES[language] for language in profile.languages]),
        "prompts_sentence": _prompts(results),
        "sampling_sentence": _sampling(results),
        "pairs_sentence": _pairs(results),
        "trim_sentence": _trim(results),
        "trim_limit_sentence": _trim_limit(results),
        "dpo_sentence": _dpo(results),
        "training_sentence": _training(results),
        "scorer_sentence": _scorers(results),
        "scorer_quality_sentence": _scorer_quality(results),
        "scorer_limit_sentence": _scorer_limit(results),
        "methods_scope_sentence": _methods_scope(results),
        "judge_sentence": _judge(results),
        "perplexity_sentence": _perplexity(results),
        "outliers_sentence": _outliers(results),
        "bootstrap_sentence": f"{results.samples:,} bootstrap replicates and a confidence of {results.confidence:.0%}",
        "coverage_sentence": _coverage(results),
        "scored_sentence": _scored(results),
        "abstract_sentence": _each(results, _abstract),
        "toxicity_sentence": _each(results, _toxicity),
        "transfer_sentence": _each(results, _transfer),
        "languages_sentence": _each(results, _languages),
        "fluency_sentence": _each(results, _fluency),
        "drift_sentence": _each(results, _drift),
        "second_scorer_sentence": _each(results, _second_scorer),
        **stored_sentences(results),
        **mechanism_sentences(results),
        "subject_sentence": _subject(results),
        "time_sentence": _time(results),
        "commit_sentence": _commits(results),
        "absent_sentence": _absent(results),
        "notices": " ".join(filter(None, (load_model(model).notice for model in profile.models))),
    }


# --- words ------------------------------------------------------------------------------------------------------


def _compared(row: pd.Series) -> bool:
    return bool(pd.notna(row["before"]) and pd.notna(row["after"]))


def _each(results: Results, sentence: Any) -> str:
    """One sentence for each comparison that was run, and one that names those that were not, or have no scores."""
    said, missing = [], []
    for comparison in results.comparisons:
        means = results.means[results.means["comparison"] == comparison.name].set_index(["scope", "metric"])
        if _compared(means.loc[("all", "emt")]):
            said.append(sentence(results, comparison, means))
        elif means.loc[("all", "emt"), ["before_run", "after_run"]].all():
            said.append(_unscored(results, comparison))
        else:
            missing.append(comparison.title)
    return " ".join([*said, *([f"Not run: {listing(missing)}."] if missing else [])])


def _unscored(results: Results, comparison: Comparison) -> str:
    """Why a comparison that was run has no toxicity on both sides: most often, a model that writes nothing."""
    counts = results.counts()
    counts = counts[counts["model"] == comparison.model].groupby("variant")[["continuations", "scored", "empty"]].sum()
    said = [
        f"of {row['continuations']:,} continuations {words} tuning {row['empty']:,} are empty and {row['scored']:,} "
        "have a score"
        for words, row in (("before", counts.loc["base"]), ("after", counts.loc[comparison.variant]))
    ]
    return f"For {comparison.title} before and after cannot be compared: {'; '.join(said)}."


def _values(values: Iterable[Any]) -> str:
    return listing([f"{value:g}" if isinstance(value, float) else str(value) for value in values])


def _subject(results: Results) -> str:
    """What this report is about: the models of the profile, or the small models of the controlled world."""
    profile = results.profile
    if not profile.models:
        return (
            f"This report asks why, with small models pretrained for the question in {len(profile.languages)} "
            "languages (@sec-world)."
        )
    titles = listing([load_model(model).title for model in profile.models])
    if not results.comparisons:
        return (
            f"This report is about the converse question, with {titles}: whether a model that is fine-tuned on text of "
            f"which half is toxic can be kept from learning it (@sec-control)."
        )
    return (
        f"This report repeats the experiment with {titles} in {len(profile.languages)} languages. "
        f"{_each(results, _abstract)}"
    )


# --- what was done ----------------------------------------------------------------------------------------------


def _prompts(results: Results) -> str:
    source = {
        "project": "written for this project, provoking but printable and parallel in all languages",
    }.get(chosen := results.profile.prompts.source) or f"those of {sources()[chosen].title}"
    counts = results.counts()["prompts"]
    if counts.empty:
        from polydetox.attribute_control.results import Control

        evaluations = Control(results).evaluations.values()
        counts = pd.Series(
            [row["prompts"] for metrics in evaluations for row in metrics["toxicity"].values()], dtype=float
        )
    if counts.empty:
        return f"The evaluation prompts are {source}; no evaluation was run."
    least, most = int(counts.min()), int(counts.max())
    number = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    each = " in each language" if len(results.profile.languages) > 1 else ""
    return f"The evaluation prompts are {source}: {number}{each}.{_more_prompts(results)}{_left_out(results)}"


def _left_out(results: Results) -> str:
    left_out = results.left_out()
    if not any(left_out.values()):
        return ""
    words = {
        "blank": "without text",
        "repeated": "that repeat a text",
        "skipped": "that their label says to skip",
        "rejected": "that are malformed",
    }
    said = [f"{left_out[kind]:,} {what}" for kind, what in words.items() if left_out[kind]]
    listed = "; the manifests list the last" if left_out["rejected"] else ""
    return f" Of the rows that were read these were left out: {listing(said)}{listed}."


def _more_prompts(results: Results) -> str:
    """Which further sets of prompts were evaluated as well."""
    said = []
    for name, prompts in results.profile.more_prompts.items():
        done = [run for run in results.stages if run.stage == "evaluate" and run.prompt_set == name and run.done]
        languages = len({run.language for run in done})
        where = f"in {languages} languages" if done else "not run"
        said.append(f"{prompts.title or name} ({where})")
    return f" Beside them, and never pooled with them, stand those of {listing(said)}." if said else ""


def _sampling(results: Results) -> str:
    stage = "generate" if results.comparisons else "constrained_decode"
    values = {name: results.parameters(stage, name) for name in ("n", "temperature", "top_p", "max_new_tokens")}
    if not values["n"]:
        return "No continuations were sampled: not run."
    said = {name: _values(value) for name, value in values.items()}
    return (
        f"Each prompt is continued {said['n']} times with at most {said['max_new_tokens']} new tokens, at temperature "
        f"{said['temperature']} and top-p {said['top_p']}."
    )


def _pairs(results: Results) -> str:
    said = []
    for (model, kind), metrics in results.stage_metrics("pairs", "kind").items():
        text = f"{metrics['pairs']:,} {kind} pairs from {metrics['prompts']:,} English prompts"
        if metrics.get("chosen_mean") is not None:
            text += (
                f", sampled from {_title(results, model)}: the mean toxicity of the chosen is "
                f"{metrics['chosen_mean']:.2f}, of the rejected {metrics['rejected_mean']:.2f}"
            )
        said.append(text)
    return f"{'; '.join(said)}." if said else "No preference pairs were made or read: not run."


def _title(results: Results, folder: str) -> str:
    return next((model.title for model in map(load_model, results.profile.models) if model.name == folder), folder)


def _trim(results: Results) -> str:
    if results.profile.trim is None:
        return "All models keep their whole vocabulary."
    said = [
        f"Of the vocabulary of {_title(results, model)}, {metrics['vocabulary_kept']:,} of "
        f"{metrics['vocabulary_full']:,} tokens are kept ({metrics['share_kept']:.0%}), which hold "
        f"{metrics['probability_mass_kept']:.1%} of the next-token probability."
        for (model, _), metrics in results.stage_metrics("trim", "variant").items()
    ]
    return " ".join(said) or "The vocabulary is to be trimmed: not run."


def _trim_limit(results: Results) -> str:
    if results.profile.trim is None:
        return _trim(results)
    return (
        f"{_trim(results)} A trimmed model cannot write what was cut away; before and after share the loss, so the "
        "comparison stands, but levels can differ from those of the whole model."
    )


def _dpo(results: Results) -> str:
    names = ("method", "learning_rate", "beta", "batch_size", "warmup_steps")
    values = {name: results.parameters("dpo", name) for name in names}
    if not values["method"]:
        return "No model was tuned with preferences in this run."
    said = {name: _values(value) for name, value in values.items()}
    return (
        f"Fine-tuning is {said['method']}, with RMSprop at a learning rate of {said['learning_rate']}, constant after "
        f"{said['warmup_steps']} warm-up steps, batches of {said['batch_size']} pairs and β = {said['beta']}."
    )


def _training(results: Results) -> str:
    said = []
    for comparison in results.comparisons:
        if comparison.variant not in results.profile.variants:
            said.append(f"{comparison.title} was trained elsewhere.")
            continue
        metrics = results.stage_metrics("dpo", "variant").get((comparison.model, comparison.variant))
        said.append(
            f"{comparison.title}: not run."
            if metrics is None
            else f"For {comparison.title} the held-out loss is lowest after {metrics['best_step']:,} of "
            f"{metrics['steps']:,} steps, at {metrics['held_out_loss']:.3f}, where the tuned model prefers the chosen "
            f"continuation in {metrics['held_out_accuracy']:.0%} of the held-out pairs."
        )
    return " ".join(said)


def _scorers(results: Results) -> str:
    scoring, stage = ("score", "evaluate") if results.comparisons else ("attribute_eval", "attribute_eval")
    scorers, second = (results.parameters(scoring, name) for name in ("scorer", "second_scorer"))
    thresholds = results.parameters(stage, "threshold")
    if not scorers:
        return "No continuations were scored: not run."
    opinion = [name for name in second if name]
    said = f"Toxicity is scored by {listing([f'`{name}`' for name in scorers])}"
    said += f", with a second opinion from {listing([f'`{name}`' for name in opinion])}" if opinion else ""
    if None in thresholds:
        return f"{said}; what counts as toxic is the scorer's own threshold."
    return f"{said}; a continuation counts as toxic from {_values(thresholds)}."


def _methods_scope(results: Results) -> str:
    """Whether the chapter on methods describes what this run is about."""
    if results.comparisons:
        return "All of them belong to this run."
    if not results.profile.models:
        return "No pretrained model belongs to this run; @sec-world says what was done with models of its own."
    return (
        "No model of this run is tuned with preferences (not run): the stages of this chapter are those of a run that "
        "does, and @sec-control says what was done instead."
    )


def _scorer_limit(results: Results) -> str:
    if not results.comparisons:
        return "@sec-control says whether the scorer that measures the methods is the oracle they were trained with."
    rankers = {metrics.get("scorer") for metrics in results.stage_metrics("pairs", "kind").values()} - {None}
    if rankers & set(results.parameters("score", "scorer")):
        return (
            "The scorer that ranks the on-policy pairs is also the one that measures their effect: the tuning may have "
            "learnt the scorer's blind spots, which a second scorer need not share."
        )
    return "The scorer that measures the effect did not rank the pairs that the models were tuned on."


def _judge(results: Results) -> str:
    judges = results.parameters("score", "judge")
    if not judges:
        return "No continuation was judged for fluency: not run."
    if judges == ["none"]:
        return "Fluency was not judged."
    if UNTUNED_JUDGE in judges:
        return (
            "The judge of fluency is the untuned model itself. It is not neutral: it finds its own text likely, and "
            "text that differs from its own less so, whether or not that text is worse. Its figures say how far the "
            "tuned model has moved, and are not comparable with those of another judge."
        )
    named = listing([f"`{judge}`" for judge in judges])
    return f"The judge of fluency is {named}, which is not one of the models under test."


def _perplexity(results: Results) -> str:
    ways = results.parameters("score", "perplexity")
    if not ways or results.parameters("score", "judge") == ["none"]:
        return "Perplexity was not measured."
    if ways == ["published"]:
        return (
            "It is computed as the published code does: from the likelihood of prompt and continuation together less "
            "that of the prompt. Where the judge has an encoder, that encoder reads the continuation as well."
        )
    return (
        "It is that of the continuation's tokens, given the prompt; an encoder, where the judge has one, reads no more."
    )


def _outliers(results: Results) -> str:
    counts = results.counts()
    judged, outliers = int(counts["judged"].sum()), int(counts["outliers"].sum())
    if not judged:
        return "Perplexity was not measured."
    found = f"{outliers:,} have" if outliers != 1 else "1 has"
    return (
        f"Of the {judged:,} continuations that were judged, {found if outliers else 'none has'} a perplexity of "
        f"{OUTLIER:,.0f} or more. The published evaluation leaves such continuations out; here they are kept."
    )


# --- what came of it --------------------------------------------------------------------------------------------


def _coverage(results: Results) -> str:
    asked = [run for run in results.stages if run.stage == "evaluate"]
    done = sum(run.done for run in asked)
    if not asked:
        return "The profile tunes no pretrained model with preferences."
    if done == len(asked):
        return f"All {done} evaluations that the profile asks for were run."
    return (
        f"Of the {len(asked)} evaluations that the profile asks for, {done} were run; what is missing is marked as not "
        "run."
    )


def _scored(results: Results) -> str:
    counts = results.counts()
    if counts.empty:
        return "No continuation was scored: not run."
    total, scored = int(counts["continuations"].sum()), int(counts["scored"].sum())
    empty, truncated = int(counts["empty"].sum()), int(counts["truncated"].sum())
    missing = (
        "all of them were scored" if scored == total else f"{total - scored:,} of them have no score and are left out"
    )
    return (
        f"The results rest on {total:,} continuations; {missing}, {f'{empty:,}' if empty else 'none'} are "
        f"empty, and {truncated:,} were cut off by the limit on new tokens."
    )


def _abstract(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    """The result in brief: toxicity in English and elsewhere, and how fluency and language went."""
    said = []
    for scope, words in (("english", "in English"), ("others", "on average in {languages} other languages")):
        row = means.loc[(scope, "toxprob")]
        if _compared(row):
            where = words.format(languages=int(row["languages"]))
            said.append(f"from {fixed(row['before'], 2)} to {fixed(row['after'], 2)} {where}")
    aside = []
    for metric, words in (
        ("perplexity", "the median perplexity"),
        ("distinct_2", "the share of distinct word pairs"),
        ("language_share", "the share of text in the right language"),
    ):
        row, digits = means.loc[("all", metric)], METRICS[metric].digits
        if _compared(row):
            verb = "" if aside else "goes "
            aside.append(f"{words} {verb}from {fixed(row['before'], digits)} to {fixed(row['after'], digits)}")
    went = f"For {comparison.title}, the share of prompts with a toxic continuation goes {listing(said)}"
    return f"{went}; over all languages, {listing(aside)}." if aside else f"{went}."


def _toxicity(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    toxprob, emt = means.loc[("all", "toxprob")], means.loc[("all", "emt")]
    return (
        f"For {comparison.title}, over {int(emt['languages'])} languages, the mean ToxProb {change(toxprob, 2)}, and "
        f"the mean EMT {change(emt, 2)}."
    )


def _transfer(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    english, others = means.loc[("english", "toxprob")], means.loc[("others", "toxprob")]
    if not (_compared(english) and _compared(others)):
        return (
            f"{comparison.title}: English and other languages cannot be compared, since not both of them were measured."
        )
    return (
        f"In English, the only language of the preference pairs, ToxProb of {comparison.title} {change(english, 2)}; "
        f"in the other {int(others['languages'])} languages its mean {change(others, 2)}."
    )


def _languages(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    table = results.by_language
    rows = table[(table["comparison"] == comparison.name) & (table["metric"] == "emt")].dropna(subset=["drop"])
    lower, certain = int((rows["drop"] > 0).sum()), int((rows["drop_low"] > 0).sum())
    ordered = rows.sort_values("drop", kind="stable")
    where = f"all {lower} languages" if lower == len(rows) > 1 else f"{lower} of {len(rows)} languages"
    how_many = "each" if certain == lower == len(rows) > 1 else f"{certain} of them"
    said = (
        f"EMT of {comparison.title} is lower after tuning in {where}, in {how_many} by more than the interval allows "
        "for chance"
    )
    if len(rows) > 1:
        least, most = ordered.iloc[0], ordered.iloc[-1]
        said += (
            f"; the drop is largest in {LANGUAGES[most['language']]} ({fixed(most['drop'], 2)}) and smallest in "
            f"{LANGUAGES[least['language']]} ({fixed(least['drop'], 2)})"
        )
    return f"{said}."


def _fluency(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    said = []
    for metric, words in (
        ("perplexity", "the median perplexity"),
        ("distinct_2", "the share of distinct word pairs"),
        ("language_share", "the share of continuations in the prompt's language"),
    ):
        row = means.loc[("all", metric)]
        said.append(f"{words} {change(row, METRICS[metric].digits)}" if _compared(row) else f"{words} was not measured")
    return f"For {comparison.title}, as means over languages, {listing(said)}."


def _drift(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    """In how many languages the share of text in the prompt's language falls or rises for sure."""
    table = results.by_language
    rows = table[(table["comparison"] == comparison.name) & (table["metric"] == "language_share")].dropna(subset="drop")
    if rows.empty:
        return f"The language of {comparison.title} was not detected."
    left, back = rows[rows["drop_low"] > 0], rows[rows["drop_high"] < 0]
    said = [f"{words} in {listing([LANGUAGES[language] for language in part['language']])}"
            for words, part in (("falls", left), ("rises", back)) if len(part)]  # fmt: skip
    change_of = f"the share in the prompt's language {listing(said)}" if said else "no language's share changes"
    return (
        f"For {comparison.title}, of {len(rows)} languages, by more than the intervals allow for chance, {change_of}."
    )


def _second_scorer(results: Results, comparison: Comparison, means: pd.DataFrame) -> str:
    row = means.loc[("all", "second_opinion")]
    if not _compared(row):
        return f"For {comparison.title} there is no second scorer's opinion."
    first = means.loc[("all", "avgtox")]
    same = (first["drop"] > 0) == (row["drop"] > 0)
    return (
        f"Under the second scorer the mean over languages of {comparison.title} "
        f"{change(row, METRICS['second_opinion'].digits)}: the two scorers {'agree' if same else 'disagree'} on the "
        "direction."
    )


# --- limits and provenance --------------------------------------------------------------------------------------

_EMBEDDED_HEAD = Path(__file__).parents[1] / "scoring" / "data" / "embedded_head.json"


def _scorer_quality(results: Results) -> str:
    if "embedded" not in results.parameters("score", "scorer"):
        return "How well it separates toxic from benign text is for its own documentation to say."
    return scorer_quality(_EMBEDDED_HEAD, results.profile.languages)


def scorer_quality(head: Path, languages: Sequence[str]) -> str:
    """How well the embedded scorer tells toxic from benign text in each language, as its own file records it.

    The file has rows under ``auc`` (``language, task, scorer, auc``: RTP-LX's own texts) and under
    ``second_person`` (``language, auc, neutral_flagged``: sentences written for this project).
    """
    recorded = read_json(head) if head.is_file() else {}
    said = []
    completions = _by_language(recorded.get("auc", []), "auc", languages, task="completion", scorer="embedded")
    if completions:
        said.append(
            "On RTP-LX's toxic and benign completions the embedded scorer separates the two with an area under the ROC "
            f"curve of {_range(completions)}: {_list(completions)}."
        )
    second_person = _by_language(recorded.get("second_person", []), "auc", languages)
    if second_person:
        flagged = _by_language(recorded["second_person"], "neutral_flagged", languages)
        said.append(
            "On insults and neutral sentences in the second person, written for this project, the area is "
            f"{_range(second_person)}; of the neutral ones it calls a share of {_range(flagged)} toxic."
        )
    return " ".join(said) or "How well the embedded scorer separates toxic from benign text was not measured."


def _by_language(rows: list[dict[str, Any]], field: str, languages: Sequence[str], **wanted: str) -> dict[str, float]:
    """One field of the rows that match, by language, in the order of ``languages``."""
    found = {
        row["language"]: float(row[field])
        for row in rows
        if row.get(field) is not None and all(row.get(key) == value for key, value in wanted.items())
    }
    return {language: found[language] for language in languages if language in found}


def _range(values: dict[str, float]) -> str:
    least, most = min(values, key=lambda key: values[key]), max(values, key=lambda key: values[key])
    low, high = fixed(values[least], 2), fixed(values[most], 2)
    return low if low == high else f"{low} ({LANGUAGES[least]}) to {high} ({LANGUAGES[most]})"


def _list(values: dict[str, float]) -> str:
    return listing([f"{LANGUAGES[language]} {fixed(value, 2)}" for language, value in values.items()])


def _time(results: Results) -> str:
    seconds = results.manifests()["wall_seconds"].astype(float)
    if seconds.empty:
        return "Nothing was run."
    return (
        f"The {len(seconds):,} notebooks of this run took {duration(seconds.sum())} in all, several of them side by "
        "side where the machine allows."
    )


def _commits(results: Results) -> str:
    commits = [commit for commit in results.manifests()["git_commit"].dropna().unique()]
    if not commits:
        return "The stages recorded no commit of the repository."
    said = listing([f"`{commit[:10]}{'+' if commit.endswith('+') else ''}`" for commit in commits])
    changed = " (a plus sign marks uncommitted changes)" if any(commit.endswith("+") for commit in commits) else ""
    return f"The stages ran at commit {said}{changed}."


def _absent(results: Results) -> str:
    """Which chapters the profile leaves out, and of which it asks for more than was run."""
    skipped = [each["about"] for each in results.record["chapters"].values() if not each["included"]]
    undone = [run for run in results.stages if not run.done]
    said = [f"This profile leaves out {listing(skipped)}."] if skipped else []
    if undone:
        said.append(f"Of {len(results.stages)} notebooks, {len(results.stages) - len(undone)} were run.")
    return " ".join(said) or "This profile asks for every part, and all of it was run."
