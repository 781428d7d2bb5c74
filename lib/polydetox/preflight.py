"""What is checked before a run starts: everything that its notebooks will read, as far as it is there already.

The parameters of each job say what it reads: prompts, scorers, labelled texts, pairs, tasks, models. The first thing
that is wrong is a ``UserError`` in the words of the profile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.core.params import Profile, control_languages, load_model, load_profile, rtp_lx_held_out
from polydetox.data.catalogue import is_available, local_path, sources, where
from polydetox.data.labelled import check_both_labels, read_labelled
from polydetox.data.pairs import rtp_lx_pairs, toxicity_pairwise
from polydetox.data.parallel import parallel_texts
from polydetox.data.prompts import load_prompts, neutral_prompts, training_prompts
from polydetox.workflow import Job, Run

Check = Callable[[], object]


def preflight(run: Run) -> None:
    """Stop at the first thing that is wrong."""
    for check in _checks(run):
        check()


def problems(run: Run) -> list[str]:
    """Everything that :func:`preflight` would stop at, one line each; what the plan of a run says is missing."""
    found = []
    for check in _checks(run):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def skipped(run: Run) -> list[str]:
    """What a run leaves out because optional data are not available, one line each."""
    lines = []
    for name, variant in run.profile.variants.items():
        if name in run.left_out:
            lines.append(f"variant {name}: its pairs {variant.pairs} are not available (see `polydetox data`)")
    for name, prompts in run.profile.more_prompts.items():
        missing = [language for language in run.profile.languages if language not in run.prompt_sets.get(name, [])]
        if name not in run.prompt_sets:
            lines.append(f"prompts {name}: {prompts.source} is not available (see `polydetox data`)")
        elif missing:
            lines.append(f"prompts {name}: not available in {' '.join(missing)}")
    return lines


def licences(profile: str) -> list[str]:
    """The licences of the models and data of a profile that come from elsewhere: a line each, to read or accept."""
    settings = load_profile(profile)
    judges = [settings.evaluate.get("judge") or load_model(listed).evaluate.get("judge") for listed in settings.models]
    judges.append(settings.control.win_rate.get("judge") if settings.control else None)
    named = [*settings.models, *(judge for judge in judges if judge not in (None, "untuned", "none"))]
    models = [model for model in map(load_model, dict.fromkeys(named)) if model.use == "hub"]
    lines = [f"{model.title}: {model.licence}" + (f", {model.licence_url}" if model.licence_url else "")
             + ("" if model.revision else " (revision not pinned)") for model in models]  # fmt: skip
    if lines and not os.environ.get("HF_TOKEN"):
        lines.append("HF_TOKEN is not set: models whose licence is accepted on the Hub need it")
    used = settings.model_dump_json()
    lines += [f"{entry.title}: {entry.licence} ({'available' if where(name) else 'not available'})"
              for name, entry in sources().items() if re.search(rf"\${entry.variable}\b", used)]  # fmt: skip
    return lines


def _checks(run: Run) -> Iterator[Check]:
    """The checks of a run, each once, in the order in which a reader mends what they find."""
    yield training_prompts
    yield from _data_checks(run)
    if run.profile.world:
        yield partial(_check_world, run)
    for model in run.models:
        yield partial(_check_model, run, model)
    done = set()
    for job in run.jobs.values():
        for check in _job_checks(run, job):
            key = (check.func, repr(check.args))
            if key not in done:
                done.add(key)
                yield check


def _data_checks(run: Run) -> Iterator[Check]:
    """The prompts of every language, and the pairs: read once, as the stages will."""
    profile = run.profile
    for language in profile.languages if profile.models else []:
        yield partial(load_prompts, profile.prompts.source, language, profile.prompts.folder, profile.prompts.limit)
    for name, prompts in profile.more_prompts.items():
        if prompts.source != "project" and not (prompts.optional and not is_available(prompts.folder)):
            yield partial(_check_folder, _place(profile, f"more_prompts: {name}"), prompts.folder)
        for language in run.prompt_sets.get(name, []):
            yield partial(load_prompts, prompts.source, language, prompts.folder, prompts.limit)
    needed = {kind for model in run.models for kind in run.kinds(model)}
    for kind, values in profile.pairs.items():
        if kind != "on-policy" and (kind in needed or not _only_optional(profile, kind)):
            yield partial(_check_pair_files, profile, kind, values.get("folder", ""))


def _place(profile: Profile, section: str) -> str:
    return f"params/profiles/{profile.name}.yaml: {section}"


def _only_optional(profile: Profile, kind: str) -> bool:
    using = [variant for variant in profile.variants.values() if variant.pairs == kind]
    return bool(using) and all(variant.optional for variant in using)


def _job_checks(run: Run, job: Job) -> Iterator[partial[Any]]:
    """What the parameters of one job name, by the name of the parameter."""
    section = run.stages[job.stage]["section"]
    where = _place(run.profile, section)
    settings = checked(Path(job.notebook).stem, **job.parameters).model_dump()
    languages = _scored_languages(run, job, settings)
    if job.stage != "pairs" or settings["kind"] == "on-policy":
        for key in ("scorer", "second_scorer"):
            if settings.get(key):
                yield partial(_check_scorer, settings[key], languages, f"{section}: {key}")
    if "scorers" in settings:
        yield partial(_check_agreement, where, settings["scorers"], run.profile.languages)
    if "texts" in settings:
        asked = settings["texts"], settings["label_threshold"], settings["labels"]
        yield partial(_check_labelled, run, job.wildcards["model"], where, *asked)
    if "suites" in settings:
        yield partial(_check_suites, settings["suites"], f"{where}: suites")
    if "sentences" in settings and "folder" in settings:
        given = [settings[name] for name in ("sentences", "languages", "folder", "limit")]
        yield partial(_check_sentences, run.profile.name, *given)
    if job.stage == "intervene":
        yield partial(neutral_prompts)
    if settings.get("source") == "toxigen-wikitext":
        prompts = settings["prompts_source"], settings["prompts_folder"], settings["prompt_limit"]
        for name in ("toxigen", "wikitext"):
            yield partial(_check_corpus, where, name, settings[name], settings["max_words"], *prompts)


def _scored_languages(run: Run, job: Job, settings: Mapping[str, Any]) -> list[str]:
    """The languages that a job's scorers are to know."""
    if job.stage == "score":
        return run.profile.languages
    if job.stage == "attribute_eval":
        return control_languages(run.profile)
    return settings.get("languages") or ["en"]


def _check_folder(where: str, folder: str) -> None:
    if not local_path(folder).is_dir():
        raise UserError(f"{where}: folder {folder!r}: no such folder (see `polydetox data`)")


def _check_pair_files(profile: Profile, kind: str, folder: str) -> None:
    _check_folder(_place(profile, f"pairs: {kind}"), folder)
    if kind == "toxicity-pairwise":
        toxicity_pairwise(folder)
    else:
        rtp_lx_pairs(folder, rtp_lx_held_out(profile))


def _check_world(run: Run) -> None:
    from polydetox.synthetic.phrasebook import Phrasebook

    Phrasebook.load().check_languages(run.profile.languages)


def _check_model(run: Run, model: str) -> None:
    """The architecture of a model, where its configuration can be had; the type of a published adapter on this disk."""
    listed = run.model_file(model)
    if listed.use != "package":
        from polydetox.mechanism.architectures import check_known
        from polydetox.models.decoders import check_decoder, listed_configuration

        configuration = listed_configuration(listed)
        if configuration is not None:
            check_decoder(configuration, listed.name)
            if run.profile.mechanism:
                check_known(configuration)
    adapter = Path(listed.tuned.path).expanduser() if listed.tuned and listed.tuned.path else None
    if adapter is not None and (adapter / "adapter_config.json").is_file():
        from polydetox.preference.dpo import check_mergeable

        check_mergeable(adapter)
    judge = run.section("evaluate", "score", model).get("judge", "untuned")
    for named in (judge, run.profile.control.win_rate.get("judge", "untuned") if run.profile.control else "untuned"):
        if named not in ("untuned", "none"):
            load_model(named)


def _check_scorer(name: str, languages: list[str], where: str) -> None:
    from polydetox.scoring import get_scorer

    scorer = get_scorer(name)
    missing = [language for language in languages if language not in scorer.languages]
    if missing:
        raise UserError(
            f"scorer {name!r} does not know {' '.join(missing)} (it knows {' '.join(sorted(scorer.languages))}); "
            f"choose another under '{where}:'"
        )


def _check_agreement(where: str, scorers: list[str], languages: list[str]) -> None:
    """Each scorer knows a language of the profile at least, and the first all of them."""
    from polydetox.scoring import get_scorer

    _check_scorer(scorers[0], languages, "agreement: scorers")
    for name in scorers[1:]:
        known = get_scorer(name).languages
        if not known & set(languages):
            raise UserError(
                f"{where}: scorers: {name!r} knows none of the profile's languages (it knows "
                f"{' '.join(sorted(known))}); leave it out"
            )


def _check_labelled(run: Run, model: str, where: str, texts: str, threshold: float, labels: Any) -> None:
    """The labelled texts that a section names, or on-policy pairs, whose continuations stand in for them."""
    if texts:
        table, _ = read_labelled(local_path(texts), threshold, labels)
        check_both_labels(table, texts)
    elif "on-policy" not in run.kinds(model):
        raise UserError(
            f"{where}: texts: is needed for {model}, which samples no on-policy pairs; name a file of texts and labels "
            "(CSV, JSON Lines or Parquet)"
        )


def _check_suites(suites: Mapping[str, Any], where: str) -> None:
    from polydetox.benchmarks.tasks import check_suites

    check_suites(suites, where)


def _check_sentences(profile: str, sentences: str, languages: list[str], folder: str, limit: int | None) -> None:
    try:
        parallel_texts(sentences, dict.fromkeys(["en", *languages]), folder, limit)
    except UserError as error:
        raise UserError(f"params/profiles/{profile}.yaml: {error}") from None


def _check_corpus(
    where: str, name: str, named: str, max_words: int, source: str, folder: str, limit: int | None
) -> None:
    """One half of the corpus, where it is read and not sampled: read once, as the stage will."""
    from polydetox.attribute_control.corpus import neutral_paragraphs, toxic_statements

    place = local_path(named)
    if not place.exists():
        raise UserError(f"{where}: {name} {named!r}: no such folder or file (see `polydetox data`)")
    if name == "wikitext":
        neutral_paragraphs(place, max_words)
    else:
        toxic_statements(place, max_words, load_prompts(source, "en", folder, limit)[0]["prompt"].tolist())
