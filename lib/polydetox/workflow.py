"""What the Snakefile and the command line share: a profile as a graph of stages, and the check before it runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from polydetox import locks, paths
from polydetox.artifacts import MANIFEST
from polydetox.data.catalogue import is_available, local_path, sources, where
from polydetox.data.labelled import check_both_labels, read_labelled
from polydetox.data.pairs import rtp_lx_pairs, toxicity_pairwise
from polydetox.data.parallel import parallel_texts
from polydetox.data.prompts import languages_available, load_prompts, neutral_prompts, training_prompts
from polydetox.errors import UserError
from polydetox.params import (
    JIGSAW_CONDITIONS,
    SECTIONS,
    ModelFile,
    Profile,
    control_methods,
    control_parameters,
    is_ablation,
    languages_of,
    load_model,
    load_profile,
    rtp_lx_held_out,
    stage_parameters,
    variants_of,
    world_parameters,
)


class Graph:
    """The stages of one profile, with the functions that the Snakefile's rules call.

    Models are known to Snakemake by their folder name (``ModelFile.name``), which for a Hub id or a local folder is
    not what the profile lists.
    """

    def __init__(self, profile: str):
        self.profile: Profile = load_profile(profile)
        self._listed = {load_model(model).name: model for model in self.profile.models}

    @property
    def models(self) -> list[str]:
        """Folder names of the models."""
        return list(self._listed)

    def model_file(self, model: str) -> ModelFile:
        """The model of a folder name."""
        return load_model(self._listed[model])

    def variants(self, model: str) -> list[str]:
        """``base`` and the tuned variants of a model, but for optional ones whose pairs are not at hand."""
        return [name for name in variants_of(self.profile, self._listed[model]) if name not in self.left_out]

    def compared(self, model: str) -> list[str]:
        """Those of them that the main tables compare: all but the ablations."""
        return [variant for variant in self.variants(model) if not is_ablation(self.profile, variant)]

    @cached_property
    def left_out(self) -> set[str]:
        """The optional variants whose pairs are not at hand."""
        return {
            name
            for name, variant in self.profile.variants.items()
            if variant.optional
            and not (variant.pairs == "on-policy" or is_available(self.profile.pairs[variant.pairs].get("folder", "")))
        }

    @cached_property
    def prompt_sets(self) -> dict[str, list[str]]:
        """The further sets of prompts that are evaluated, with their languages; of an optional set those at hand."""
        languages = self.profile.languages
        found = {
            name: languages_available(prompts.source, languages, prompts.folder) if prompts.optional else languages
            for name, prompts in self.profile.more_prompts.items()
        }
        return {name: languages for name, languages in found.items() if languages}

    def trained(self, model: str) -> list[str]:
        """The variants that this profile trains itself."""
        return [variant for variant in self.variants(model) if variant in self.profile.variants]

    def kinds(self, model: str) -> list[str]:
        """The kinds of preference pairs that the trained variants of a model use."""
        return sorted({self.profile.variants[variant].pairs for variant in self.trained(model)})

    def base(self, model: str) -> str:
        """The manifest of the checkpoint that sampling and training start from."""
        folder = paths.trim(self.profile.name, model) if self.profile.trim else paths.checkpoint(model)
        return manifest(folder)

    def checkpoint(self, model: str, variant: str) -> str:
        """The manifest of the checkpoint of one variant."""
        return self.base(model) if variant == "base" else manifest(paths.merge(self.profile.name, model, variant))

    def tuned(self, model: str, variant: str) -> list[str]:
        """What merging waits for: the training, or nothing for a published checkpoint."""
        trained = variant in self.profile.variants
        return [manifest(paths.dpo(self.profile.name, model, variant))] if trained else []

    def prompts(self, prompt_set: str = "") -> list[str]:
        """The files that the evaluation prompts come from, as far as they are this project's."""
        prompts = self.profile.more_prompts[prompt_set] if prompt_set else self.profile.prompts
        return [local(paths.prompt_files() / "evaluation.yaml")] if prompts.source == "project" else []

    def prompts_left_out(self) -> list[str]:
        """The files of those that the corpus of attribute control leaves out, where it is read and not sampled."""
        control = self.profile.control
        return self.prompts() if control and control.corpus.get("source") != "model" else []

    def parallel(self) -> list[str]:
        """The files that the parallel sentences come from, as far as they are this project's."""
        project = self.profile.alignment and self.profile.alignment.retrieval.get("sentences") == "project"
        return [local(paths.prompt_files() / "evaluation.yaml")] if project else []

    def parameters(self, stage: str, folder: Path, model: str, **identity: str) -> str:
        """All parameters of one job, as JSON."""
        values = stage_parameters(stage, self.profile, self._listed[model], **identity)
        values["output_folder"] = local(folder)
        if identity.get("prompt_set") and "languages" in values:
            values["languages"] = self.prompt_sets[identity["prompt_set"]]
        if stage == "trim":
            values["more_prompts"] = [
                self.profile.more_prompts[name].model_dump(include={"source", "folder", "limit"})
                | {"languages": languages}
                for name, languages in self.prompt_sets.items()
            ]
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    def cells(self) -> list[str]:
        """The small models of the controlled world."""
        return list(self.profile.world.cells()) if self.profile.world else []

    def world_parameters(self, stage: str, folder: Path, cell: str) -> str:
        """All parameters of one job of the controlled world, as JSON."""
        values = world_parameters(stage, self.profile, cell)
        values["output_folder"] = local(folder)
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    def methods(self) -> list[str]:
        """The methods of attribute control, `base` (untuned) first; none without a section `control`."""
        return control_methods(self.profile)

    def conditions(self) -> list[str]:
        """The ways of training on labelled comments; none where the profile has no such section."""
        wanted = self.profile.control and self.profile.control.jigsaw_classify is not None
        return list(JIGSAW_CONDITIONS) if wanted else []

    def judged_continuations(self, model: str) -> list[str]:
        """The continuations of every method that the judge compares."""
        return [
            local(paths.constrained_decode(self.profile.name, model, method) / "continuations.parquet")
            for method in self.methods()
        ]

    def labelled_comments(self, model: str) -> list[str]:
        """What the labelled comments wait for: nothing where the profile names a file of them."""
        assert self.profile.control is not None
        if (self.profile.control.jigsaw_classify or {}).get("texts"):
            return []
        return [manifest(paths.pairs(self.profile.name, model, "on-policy"))]

    def task_files(self) -> list[str]:
        """The multiple-choice tasks of this project."""
        return [local(file) for file in sorted(paths.task_files().iterdir())]

    def control_parameters(self, stage: str, folder: Path, model: str, **identity: str) -> str:
        """All parameters of one job of attribute control, as JSON."""
        values = control_parameters(stage, self.profile, self._listed[model], **identity)
        values["output_folder"] = local(folder)
        return json.dumps(values, ensure_ascii=False, sort_keys=True)

    def control_gpus(self, model: str, method: str) -> int:
        """GPUs of one fine-tuning: two where head and model train side by side."""
        values = control_parameters("regularise", self.profile, self._listed[model], method=method)
        return self.resource(model, "gpu") * (values["devices"] or 1)

    def controlled(self, model: str, method: str) -> list[str]:
        """The manifest of a method's checkpoint."""
        if method == "base":
            return [self.base(model)]
        return [manifest(paths.regularise(self.profile.name, model, method))]

    def _control(self, model: str) -> list[str]:
        name = self.profile.name
        return [
            manifest(paths.control_corpus(name, model)),
            *(manifest(paths.regularise(name, model, method)) for method in self.methods() if method != "base"),
            *(manifest(paths.constrained_decode(name, model, method)) for method in self.methods()),
            *(manifest(paths.attribute_eval(name, model, method)) for method in self.methods()),
            manifest(paths.win_rate(name, model)),
            *(manifest(paths.jigsaw_classify(name, model, condition)) for condition in self.conditions()),
        ]  # fmt: skip

    def sections(self) -> list[str]:
        """The sections of the report that this profile has something for."""
        tuned = any(self.compared(model)[1:] for model in self.models)
        own = {"run": True, "world": self.profile.world, "control": tuned or self.profile.control}
        return [section for section in SECTIONS if own.get(section, tuned)]

    def summary_parameters(self, section: str) -> str:
        """The parameters of a summary notebook, as JSON."""
        folder = paths.summary(self.profile.name, section)
        return json.dumps({"profile": self.profile.name, "output_folder": local(folder)})

    def source(self, model: str) -> str:
        """Where the weights of a model come from, as JSON: a changed model file runs its stages again."""
        return json.dumps(self.model_file(model).source(), sort_keys=True)

    def resource(self, model: str, name: str) -> int:
        """What a job on a model asks of the cluster: ``gpu`` or ``mem_mb``."""
        return int(getattr(self.model_file(model).resources, name))

    def labelled(self, model: str) -> list[str]:
        """What the labelled texts of the probe wait for: nothing where the profile names a file of them."""
        assert self.profile.mechanism is not None
        if self.profile.mechanism.probe.get("texts"):
            return []
        return [manifest(paths.pairs(self.profile.name, model, "on-policy"))]

    def evaluations(self, model: str, *variants: str) -> list[str]:
        """The manifests of the scores of some variants, and of their evaluation in every language of theirs."""
        name = self.profile.name
        evaluated = [manifest(paths.evaluate(name, model, variant, language))
                     for variant in variants for language in languages_of(self.profile, variant)]  # fmt: skip
        return [*(manifest(paths.score(name, model, variant)) for variant in variants), *evaluated]

    def further_evaluations(self, model: str) -> list[str]:
        """The same on further sets of prompts."""
        wanted = []
        for name, languages in self.prompt_sets.items():
            for variant in self.compared(model):
                wanted.append(manifest(paths.score(self.profile.name, model, variant, name)))
                wanted += [manifest(paths.evaluate(self.profile.name, model, variant, language, name))
                           for language in languages]  # fmt: skip
        return wanted

    def _mechanism(self, model: str) -> list[str]:
        name = self.profile.name
        return [
            manifest(paths.probe(name, model)),
            manifest(paths.value_vectors(name, model)),
            *(manifest(paths.activations(name, model, variant)) for variant in self.compared(model)),
            manifest(paths.intervene(name, model)),
        ]

    def _alignment(self, model: str) -> list[str]:
        transfers = [
            manifest(paths.transfer(self.profile.name, model, variant)) for variant in self.compared(model)[1:]
        ]
        return [manifest(paths.retrieval(self.profile.name, model)), *transfers]

    def results(self) -> list[str]:
        """The manifests of everything that the report reads."""
        wanted = []
        for model in self.models:
            if self.profile.trim:
                wanted.append(manifest(paths.trim(self.profile.name, model)))
            wanted += [manifest(paths.pairs(self.profile.name, model, kind)) for kind in self.kinds(model)]
            wanted += [manifest(paths.dpo(self.profile.name, model, variant)) for variant in self.trained(model)]
            wanted += self.evaluations(model, *self.variants(model))
            wanted += self.further_evaluations(model)
            if self.profile.agreement is not None:
                wanted.append(manifest(paths.agreement(self.profile.name, model)))
            wanted += self._mechanism(model) if self.profile.mechanism else []
            wanted += self._alignment(model) if self.profile.alignment else []
            wanted += self._control(model) if self.profile.control else []
            if self.profile.capability is not None:
                wanted += [manifest(paths.capability(self.profile.name, model, variant))
                           for variant in self.compared(model)]  # fmt: skip
        return wanted + [manifest(paths.world_transfer(self.profile.name, cell)) for cell in self.cells()]


def local(path: Path) -> str:
    """A path as the workflow writes it: relative to the checkout where it lies inside."""
    return paths.relative(path)


def manifest(folder: Path) -> str:
    """The manifest of a stage's folder, as the workflow writes it."""
    return local(folder / MANIFEST)


def preflight(profile: str) -> None:
    """Check everything that a run of a profile reads, before anything costly starts.

    Parameters of every stage, prompts of every language, folders of preference pairs, and the scorers: the first
    thing that is wrong is a ``UserError``.
    """
    for check in _checks(Graph(profile)):
        check()


def problems(profile: str) -> list[str]:
    """Everything that :func:`preflight` would stop at, one line each; what the plan of a run says is missing."""
    found = []
    for check in _checks(Graph(profile)):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


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
    lines += [f"{entry.title}: {entry.licence} ({'at hand' if where(name) else 'not at hand'})"
              for name, entry in sources().items() if re.search(rf"\${entry.variable}\b", used)]  # fmt: skip
    return lines


def _checks(graph: Graph) -> Iterator[Callable[[], object]]:
    """The checks of a profile, in the order in which a reader mends what they find."""
    settings = graph.profile
    yield training_prompts
    for language in settings.languages if settings.models else []:
        yield partial(load_prompts, settings.prompts.source, language, settings.prompts.folder, settings.prompts.limit)
    for name, prompts in settings.more_prompts.items():
        if prompts.source != "project" and not (prompts.optional and not is_available(prompts.folder)):
            where = f"params/profiles/{settings.name}.yaml: more_prompts: {name}"
            yield partial(_check_folder, where, {"folder": prompts.folder})
        for language in graph.prompt_sets.get(name, []):
            yield partial(load_prompts, prompts.source, language, prompts.folder, prompts.limit)
    needed = {kind for model in graph.models for kind in graph.kinds(model)}
    for kind, values in settings.pairs.items():
        if kind != "on-policy" and (kind in needed or not _only_optional(settings, kind)):
            yield partial(_check_pair_files, settings, kind, values)
    if settings.world:
        yield partial(_check_world, graph)
    for model in graph.models:
        for variant in graph.variants(model):
            yield partial(_check_evaluation, graph, model, variant)
    for model in graph.models:
        yield partial(_check_model, graph, model)
        for variant in graph.trained(model):
            yield partial(stage_parameters, "dpo", settings, graph._listed[model], variant=variant)
        if settings.agreement is not None:
            yield partial(_check_agreement, graph, model)
        if settings.mechanism:
            yield partial(_check_mechanism, graph, model)
        if settings.alignment:
            yield partial(_check_alignment, graph, model)
        if settings.capability is not None:
            yield partial(_check_capability, graph, model)
        if settings.control:
            for name in ("toxigen", "wikitext") if model == graph.models[0] else ():  # all models have the same
                yield partial(_check_control_texts, graph, model, name)
            yield partial(_check_control, graph, model)
            yield partial(_check_control_evaluation, graph, model)
        for kind in graph.kinds(model):
            yield partial(_check_pairs, graph, model, kind)


def skipped(profile: str) -> list[str]:
    """What a run of a profile leaves out because optional data are not at hand, one line each."""
    graph = Graph(profile)
    lines = []
    for name, variant in graph.profile.variants.items():
        if name in graph.left_out:
            lines.append(f"variant {name}: its pairs {variant.pairs} are not at hand (see `polydetox data`)")
    for name, prompts in graph.profile.more_prompts.items():
        missing = [language for language in graph.profile.languages if language not in graph.prompt_sets.get(name, [])]
        if name not in graph.prompt_sets:
            lines.append(f"prompts {name}: {prompts.source} is not at hand (see `polydetox data`)")
        elif missing:
            lines.append(f"prompts {name}: not at hand in {' '.join(missing)}")
    return lines


def _only_optional(profile: Profile, kind: str) -> bool:
    using = [variant for variant in profile.variants.values() if variant.pairs == kind]
    return bool(using) and all(variant.optional for variant in using)


def _check_folder(where: str, values: Mapping[str, Any]) -> None:
    if not local_path(values.get("folder", "")).is_dir():
        raise UserError(f"{where}: folder {values.get('folder', '')!r}: no such folder (see `polydetox data`)")


def _check_pair_files(settings: Profile, kind: str, values: Mapping[str, Any]) -> None:
    """Read the pairs of a data set once, as the stage will."""
    _check_folder(f"params/profiles/{settings.name}.yaml: pairs: {kind}", values)
    folder = values.get("folder", "")
    if kind == "toxicity-pairwise":
        toxicity_pairwise(folder)
    else:
        rtp_lx_pairs(folder, rtp_lx_held_out(settings))


def _check_world(graph: Graph) -> None:
    from polydetox.synthetic.phrasebook import Phrasebook

    Phrasebook.load().check_languages(graph.profile.languages)
    for cell in graph.cells():
        for stage in ("pretrain", "transfer"):
            world_parameters(stage, graph.profile, cell)


def _check_model(graph: Graph, model: str) -> None:
    """The architecture of a model, where its configuration can be had; the type of a published adapter on this disk."""
    listed = graph.model_file(model)
    if listed.use != "package":
        from polydetox.mechanism.architectures import check_known
        from polydetox.models.decoders import check_decoder, listed_configuration

        configuration = listed_configuration(listed)
        if configuration is not None:
            check_decoder(configuration, listed.name)
            if graph.profile.mechanism:
                check_known(configuration)
    adapter = Path(listed.tuned.path).expanduser() if listed.tuned and listed.tuned.path else None
    if adapter is not None and (adapter / "adapter_config.json").is_file():
        from polydetox.preference.dpo import check_mergeable

        check_mergeable(adapter)


def _check_evaluation(graph: Graph, model: str, variant: str) -> None:
    settings = graph.profile
    listed = graph._listed[model]
    stage_parameters("evaluate", settings, listed, variant=variant, lang=settings.languages[0])
    checked = stage_parameters("score", settings, listed, variant=variant)
    _check_scorer(checked["scorer"], settings.languages)
    if checked["second_scorer"]:
        _check_scorer(checked["second_scorer"], settings.languages)
    if checked["judge"] not in ("untuned", "none"):
        load_model(checked["judge"])


def _check_pairs(graph: Graph, model: str, kind: str) -> None:
    made = stage_parameters("pairs", graph.profile, graph._listed[model], kind=kind)
    if kind == "on-policy":
        _check_scorer(made["scorer"], ["en"])


def _check_agreement(graph: Graph, model: str) -> None:
    """Each scorer knows a language of the profile at least, and the first all of them."""
    from polydetox.scoring import get_scorer

    settings = graph.profile
    first, *others = stage_parameters("agreement", settings, graph._listed[model])["scorers"]
    _check_scorer(first, settings.languages)
    for name in others:
        known = get_scorer(name).languages
        if not known & set(settings.languages):
            raise UserError(
                f"params/profiles/{settings.name}.yaml: agreement: scorers: {name!r} knows none of the profile's "
                f"languages (it knows {' '.join(sorted(known))}); leave it out"
            )


def _check_labelled(graph: Graph, model: str, values: Mapping[str, Any], section: str) -> None:
    """The labelled texts that a section names, or on-policy pairs, whose continuations stand in for them."""
    if values["texts"]:
        table, _ = read_labelled(local_path(values["texts"]), values["label_threshold"], values["labels"])
        check_both_labels(table, values["texts"])
    elif "on-policy" not in graph.kinds(model):
        raise UserError(
            f"params/profiles/{graph.profile.name}.yaml: {section}: texts: is needed for {model}, which samples no "
            "on-policy pairs; name a file of texts and labels (CSV, JSON Lines or Parquet)"
        )


def _check_mechanism(graph: Graph, model: str) -> None:
    """The labelled texts of the probe, and the scorer of the interventions."""
    settings, listed = graph.profile, graph._listed[model]
    probe = stage_parameters("probe", settings, listed)
    _check_labelled(graph, model, probe, "mechanism: probe")
    _check_scorer(stage_parameters("intervene", settings, listed)["scorer"], settings.languages)
    neutral_prompts()


def _check_alignment(graph: Graph, model: str) -> None:
    """The parallel sentences."""
    settings = graph.profile
    values = stage_parameters("retrieval", settings, graph._listed[model])
    try:
        parallel_texts(
            values["sentences"], dict.fromkeys(["en", *settings.languages]), values["folder"], values["limit"]
        )
    except UserError as error:
        raise UserError(f"params/profiles/{settings.name}.yaml: {error}") from None


def _check_control_texts(graph: Graph, model: str, name: str) -> None:
    """One half of the corpus, where it is read and not sampled: read once, as the stage will."""
    from polydetox.attribute_control.corpus import neutral_paragraphs, toxic_statements

    settings = graph.profile
    corpus = control_parameters("control_corpus", settings, graph._listed[model])
    if corpus["source"] != "toxigen-wikitext":
        return
    place = local_path(corpus[name])
    if not place.exists():
        raise UserError(
            f"params/profiles/{settings.name}.yaml: control: corpus: {name} {corpus[name]!r}: no such folder or file "
            "(see `polydetox data`)"
        )
    if name == "wikitext":
        neutral_paragraphs(place, corpus["max_words"])
        return
    asked = (corpus["prompts_source"], "en", corpus["prompts_folder"], corpus["prompt_limit"])
    toxic_statements(place, corpus["max_words"], load_prompts(*asked)[0]["prompt"].tolist())


def _check_control(graph: Graph, model: str) -> None:
    """The oracles, and the settings of every method."""
    settings, listed = graph.profile, graph._listed[model]
    _check_scorer(control_parameters("control_corpus", settings, listed)["scorer"], ["en"], "control: corpus: scorer")
    for method in graph.methods()[1:]:
        values = control_parameters("regularise", settings, listed, method=method)
        _check_scorer(values["scorer"], ["en"], f"control: methods: {method}: regularise: scorer")
    for method in graph.methods():
        control_parameters("constrained_decode", settings, listed, method=method)


def _check_capability(graph: Graph, model: str) -> None:
    """The tasks of the capability table."""
    from polydetox.benchmarks.tasks import check_suites

    values = stage_parameters("capability", graph.profile, graph._listed[model], variant="base")
    check_suites(values["suites"], f"params/profiles/{graph.profile.name}.yaml: capability: suites")


def _check_control_evaluation(graph: Graph, model: str) -> None:
    """The tasks, scorers, judge and labelled comments of the evaluation of attribute control."""
    from polydetox.benchmarks.tasks import check_suites

    settings, listed = graph.profile, graph._listed[model]
    assert settings.control is not None
    where = f"params/profiles/{settings.name}.yaml: control"
    evaluated = control_parameters("attribute_eval", settings, listed, method="base")
    _check_scorer(evaluated["scorer"], evaluated["languages"])
    check_suites(evaluated["suites"], f"{where}: attribute_eval: suites")
    judge = control_parameters("win_rate", settings, listed)["judge"]
    if judge != "untuned":
        load_model(judge)
    if settings.control.jigsaw_classify is not None:
        asked = control_parameters("jigsaw_classify", settings, listed, condition="untouched")
        _check_scorer(asked["scorer"], ["en"])
        _check_labelled(graph, model, asked, "control: jigsaw_classify")


def _check_scorer(name: str, languages: list[str], where: str = "evaluate: scorer") -> None:
    from polydetox.scoring import get_scorer

    scorer = get_scorer(name)
    missing = [language for language in languages if language not in scorer.languages]
    if missing:
        raise UserError(
            f"scorer {name!r} does not know {' '.join(missing)} (it knows {' '.join(sorted(scorer.languages))}); "
            f"choose another under '{where}:'"
        )


@contextlib.contextmanager
def run_lock(profile: str) -> Iterator[None]:
    """Let one run at a time work on a profile, whichever host it is on; a lock that a killed run left does not hold."""
    with locks.held(paths.profile_run(profile) / ".running", f"profile {profile!r} is being run already"):
        yield
