"""What is checked before a run starts: everything that its notebooks will read, as far as it is there already.

The parameters of each job say what it reads: prompts, scorers, labelled texts, pairs, tasks, models. The first thing
that is wrong is a ``UserError`` in the words of the profile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from polydetox.attribute_control.corpus import neutral_paragraphs, toxic_statements
from polydetox.benchmarks.tasks import check_suites
from polydetox.core import paths
from polydetox.core.control import control_languages
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.core.params import ON_POLICY, PAIRS, ModelFile, Profile, load_model, rtp_lx_held_out
from polydetox.data.catalogue import is_available, local_path, sources, where
from polydetox.data.labelled import check_both_labels, read_labelled
from polydetox.data.pairs import (
    check_inputs,
    check_room,
    check_takes_unpaired,
    not_evaluated,
    own_pairs,
    rtp_lx_pairs,
    toxicity_pairwise,
)
from polydetox.data.parallel import parallel_texts
from polydetox.data.prompts import load_prompts, neutral_prompts, prompts_of_sets, training_prompts
from polydetox.models.checkpoints import is_made, package_folder
from polydetox.models.decoders import check_decoder, check_mergeable, listed_configuration
from polydetox.scoring import get_scorer
from polydetox.synthetic.phrasebook import Phrasebook
from polydetox.workflow import Job, Run

Checks = Iterator["partial[Any]"]


def preflight(run: Run) -> None:
    """Stop at the first thing that is wrong."""
    for check in _checks(run):
        check()


def problems(run: Run) -> list[str]:
    """Everything that :func:`preflight` would stop at, one line each; what the plan of a run says is missing."""
    found: dict[str, None] = {}
    for check in _checks(run):
        try:
            check()
        except UserError as error:
            found[str(error)] = None
    return list(found)


def skipped(run: Run) -> list[str]:
    """What a run skips because optional data are not available, one line each."""
    lines = [f"variant {name}: its pairs {run.profile.variants[name].pairs} are not available (see `polydetox data`)"
             for name in sorted(run.skipped)]  # fmt: skip
    for name, prompts in run.profile.more_prompts.items():
        if name not in run.prompt_sets:
            lines.append(f"prompts {name}: {prompts.source} is not available (see `polydetox data`)")
        elif missing := [one for one in run.profile.languages if one not in run.prompt_sets[name]]:
            lines.append(f"prompts {name}: not available in {' '.join(missing)}")
    return lines


def licences(profile: Profile) -> list[str]:
    """The licences of the models and data of a profile that come from elsewhere: a line each, to read or accept."""
    named = [*profile.models, *_other_models(profile)]
    models = [model for model in map(load_model, dict.fromkeys(named)) if model.use != "path"]
    unpinned = [model for model in models if model.use == "hub" and not model.revision]
    lines = [f"{model.title}: {model.licence}" + (f", {model.licence_url}" if model.licence_url else "")
             + (" (revision not pinned)" if model in unpinned else "") for model in models]  # fmt: skip
    if any(model.use == "hub" for model in models) and not os.environ.get("HF_TOKEN"):
        lines.append("HF_TOKEN is not set: models whose licence is accepted on the Hub need it")
    used = profile.model_dump_json()
    lines += [f"{entry.title}: {entry.licence} ({'available' if where(name) else 'not available'})"
              for name, entry in sources().items() if re.search(rf"\${entry.variable}\b", used)]  # fmt: skip
    return lines


def _other_models(profile: Profile) -> list[str]:
    """The models that measure those of a profile: of perplexity, and of which continuation is better."""
    settings = [load_model(model).evaluate | profile.evaluate for model in profile.models]
    asked = [each.get("reference_model") for each in settings]
    asked.append(profile.control.win_rate.get("judge") if profile.control else None)
    named = [model for model in asked if model not in (None, "base", "none")]
    return named + [model for each in settings if (model := each.get("second_reference_model"))]


def _checks(run: Run) -> Checks:
    """The checks of a run, each once, in the order in which a reader mends what they find."""
    of_jobs = chain.from_iterable(_job_checks(run, job) for job in run.jobs.values())
    yield from {repr(check): check for check in chain(_own_checks(run), of_jobs)}.values()


def _own_checks(run: Run) -> Checks:
    """The prompts of every language and the pairs, read as the stages will; the models."""
    profile = run.profile
    yield partial(training_prompts)
    for language in profile.languages if profile.models else []:
        yield partial(load_prompts, language=language, **profile.prompts.arguments())
    for name, prompts in profile.more_prompts.items():
        if prompts.source != "project" and not (prompts.optional and not is_available(prompts.folder)):
            yield partial(_check_folder, f"{_file(profile)}: more_prompts: {name}: folder", prompts.folder)
        for language in run.prompt_sets.get(name, []):
            yield partial(load_prompts, language=language, **prompts.arguments())
    needed = {kind for model in run.models for kind in run.kinds(model)}
    for kind in profile.pairs:
        using = [variant.optional for variant in profile.variants.values() if variant.pairs == kind]
        if kind not in ON_POLICY and (kind in needed or not using or not all(using)):
            yield partial(_check_pairs, run, kind)
    if profile.world:
        yield partial(lambda *of: Phrasebook.read().check_languages(*of), profile.languages, f"{_file(profile)}: ")
    yield from (partial(_check_installed, model) for model in [*run.listed.values(), *_other_models(profile)])
    yield from (partial(_check_model, run, model) for model in run.models)


def _file(profile: Profile) -> str:
    return f"params/profiles/{profile.name}.yaml"


def _check_folder(where: str, folder: str) -> None:
    if not local_path(folder).exists():
        raise UserError(f"{where} {folder!r}: no such folder or file (see `polydetox data`)")


def _check_pairs(run: Run, kind: str) -> None:
    given = checked("pairs", **run.profile.pairs[kind])
    key = "folder" if kind in PAIRS else "data"
    if not getattr(given, key).startswith("hub:"):
        _check_folder(f"{_file(run.profile)}: pairs: {kind}: {key}", getattr(given, key))
    if kind == "toxicity-pairwise":
        toxicity_pairwise(given.folder)
    else:
        pairs, _ = (rtp_lx_pairs(given.folder, rtp_lx_held_out(run.profile)) if kind == "rtp-lx" else
                    own_pairs(given.data, given.columns.model_dump()))  # fmt: skip
        not_evaluated(pairs, prompts_of_sets(run.evaluated_prompts()))


def _check_installed(model: str) -> None:
    """The package of a model, unless its weights have been made from it; any other source is seen when it is loaded."""
    listed = load_model(model)
    if listed.use == "package" and not is_made(listed, paths.checkpoint(listed.name)):
        package_folder(listed)


def _check_model(run: Run, model: str) -> None:
    """The architecture of a model, where its configuration can be had; the type of a published adapter on this disk."""
    listed = run.model_file(model)
    configuration = listed_configuration(listed) if listed.use != "package" else None
    if configuration is not None:
        check_decoder(configuration, listed.name)
        if run.profile.mechanism:
            from polydetox.mechanism.architectures import check_known

            check_known(configuration)
    adapter = Path(listed.tuned.path).expanduser() if listed.tuned and listed.tuned.path else None
    if adapter is not None and (adapter / "adapter_config.json").is_file():
        check_mergeable(adapter)


def _job_checks(run: Run, job: Job) -> Checks:
    """What the parameters of one job name, by the name of the parameter."""
    section = run.stages[job.stage]["section"]
    where = f"{_file(run.profile)}: {section}"
    settings = job.resolved()
    scored = {"score": run.profile.languages, "attribute_eval": control_languages(run.profile)}
    languages = scored.get(job.stage) or settings.get("languages") or ["en"]
    # A first scorer has to know all languages, another one of them.
    for key in ("scorer", "second_scorer"):
        if settings.get(key) and settings.get("kind") in (None, "on-policy"):
            other = key == "second_scorer"
            yield partial(_check_scorer, settings[key], languages, f"{section}: {key}", one_is_enough=other)
    for number, name in enumerate(settings.get("scorers", [])):
        yield partial(_check_scorer, name, run.profile.languages, "agreement: scorers", one_is_enough=number > 0)
    if "texts" in settings:
        asked = settings["texts"], settings["label_threshold"], settings["labels"]
        yield partial(_check_labelled, run, job.wildcards["model"], where, *asked)
    if job.stage == "label_sheet":
        yield partial(_check_size, where, settings["texts_per_language"], settings["bins"] * len(settings["texts_of"]))
    for sheet in settings.get("sheets", []):
        yield partial(_check_sheet, where, sheet)
    if "suites" in settings:
        yield partial(check_suites, settings["suites"], f"{where}: suites")
    if "sentences" in settings and "folder" in settings:
        given = [settings[name] for name in ("sentences", "languages", "folder", "limit")]
        yield partial(_check_sentences, where, *given)
    if job.stage in ("dpo", "profs"):
        kind = run.profile.variants[variant := job.wildcards["variant"]].pairs
        said = f"{_file(run.profile)}: variants: {variant}"
        if run.profile.pairs[kind].get("columns", {}).get("label"):
            yield partial(check_takes_unpaired, f"{said}: pairs: {kind}", {"tuning": job.stage, **settings})
        elif job.stage == "dpo":
            yield partial(check_inputs, said, settings)
        if job.stage == "dpo":
            yield partial(check_room, said, settings)
    if job.stage == "profs":
        model = run.model_file(job.wildcards["model"])
        yield partial(_check_edit, model, where, settings["rank"], settings["pair_limit"])
    if settings.get("experts"):
        from polydetox.generation.engines import engine_with_experts

        yield partial(engine_with_experts, where, settings["engine"], settings["temperature"])
    if job.stage == "intervene":
        yield partial(neutral_prompts)
    if settings.get("source") == "toxigen-wikitext":
        prompts = run.profile.prompts.arguments() | {"limit": settings["prompt_limit"]}
        for name in ("toxigen", "wikitext"):
            yield partial(_check_corpus, where, name, settings[name], settings["max_words"], prompts)


def _check_edit(model: ModelFile, where: str, rank: int, pairs: int | None) -> None:
    """Whether a model can be edited, as far as its configuration is available."""
    from polydetox.mechanism.architectures import check_known
    from polydetox.preference.profs import check_rank

    configuration, hidden = listed_configuration(model), None
    if configuration is not None:
        check_known(configuration)
        hidden = configuration.get_text_config().hidden_size
    check_rank(where, rank, pairs, hidden)


def _check_scorer(name: str, languages: list[str], where: str, *, one_is_enough: bool = False) -> None:
    known = get_scorer(name).languages
    missing = [language for language in languages if language not in known]
    if missing if not one_is_enough else len(missing) == len(languages):
        raise UserError(f"scorer {name!r} does not know {' '.join(missing)} (it knows {' '.join(sorted(known))}); "
                        f"choose another under '{where}:'")  # fmt: skip


def _check_labelled(run: Run, model: str, where: str, texts: str, threshold: float, labels: Any) -> None:
    """The labelled texts that a section names, or on-policy pairs, whose continuations stand in for them."""
    if texts:
        check_both_labels(read_labelled(local_path(texts), threshold, labels)[0], texts)
    elif "on-policy" not in run.kinds(model):
        raise UserError(f"{where}: texts: is needed for {model}, which samples no on-policy pairs; name a file of "
                        "texts and labels (CSV, JSON Lines or Parquet)")  # fmt: skip


def _check_size(where: str, texts: int, need: int) -> None:
    if texts < need:
        raise UserError(f"{where}: texts_per_language: {texts} leave some bin of a variant empty; give {need} or more")


def _check_sheet(where: str, sheet: str) -> None:
    if not paths.given(sheet).is_file():
        raise UserError(f"{where}: sheets: {sheet!r}: no such file; name labelled sheets, or none until some come back")


def _check_sentences(where: str, sentences: str, languages: list[str], folder: str, limit: int | None) -> None:
    try:
        parallel_texts(sentences, dict.fromkeys(["en", *languages]), folder, limit)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check_corpus(where: str, name: str, place: str, max_words: int, prompts: dict[str, Any]) -> None:
    """One half of the corpus, where it is read and not sampled: read once, as the stage will."""
    _check_folder(f"{where}: {name}", place)
    if name == "wikitext":
        neutral_paragraphs(local_path(place), max_words)
    else:
        known = load_prompts(language="en", **prompts)[0]["prompt"].tolist()
        toxic_statements(local_path(place), max_words, known)
