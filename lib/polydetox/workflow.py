"""A profile as the jobs of the workflow: which there are, where each writes, and what its notebook is given.

The rules register their stages with :class:`Run`, each beside the rule that runs it; nothing else lists them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, atomic_path
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked, declaration, notebook_file, validated
from polydetox.core.params import (
    ModelFile,
    Profile,
    is_ablation,
    languages_of,
    load_model,
    load_profile,
    tuned_by,
    variants_of,
)
from polydetox.data.catalogue import is_available, local_path, visible_files
from polydetox.data.prompts import languages_available, prompt_file

Wildcards = Mapping[str, str]
RECORD = "run.json"  # in the folder of a run: what it is made of
FIRST = "first/"  # a folder there, and jobs' set of prompts: what is about the profile's first languages alone


@dataclass(frozen=True)
class Job:
    """One notebook that a run executes."""

    stage: str
    notebook: str
    folder: str  # where it writes; relative to the checkout where it lies inside
    wildcards: dict[str, str]
    parameters: dict[str, Any]  # those that differ from the notebook's defaults

    def resolved(self) -> dict[str, Any]:
        """All parameters, defaults included."""
        return dict(checked(Path(self.notebook).stem, **self.parameters).model_dump())


class Run:
    """One run of a profile, and the stages that the rules register for it; models by the name of their folder."""

    def __init__(self, profile: str):
        self.profile: Profile = load_profile(profile)
        self.folder = paths.relative(paths.profile_run(profile))
        self.listed = {load_model(model).name: model for model in self.profile.models}
        self.jobs: dict[tuple[Any, ...], Job] = {}
        self.stages: dict[str, dict[str, Any]] = {}
        self.chapters: dict[str, dict[str, Any]] = {}
        self.sections: dict[str, dict[str, str]] = {}  # of the report, and with ``FIRST`` of its early site

    def chapter(self, name: str, about: str, *, section: str, included: bool) -> None:
        """Say what a chapter is about, which section tells it, and whether the profile has it; stages follow."""
        self.chapters[name] = {"about": about, "section": section, "included": included}

    def stage(
        self, name: str, folder: str, *, jobs: Iterable[Wildcards], title: str, section: str = "", notebook: str = "",
        table: str = MANIFEST, settings: Callable[..., Mapping[str, Any]] | None = None,
        inputs: Callable[..., Mapping[str, Any]] = lambda **_: {},
    ) -> str:  # fmt: skip
        """Register a stage: its folder with wildcards, its jobs, what their notebooks are given; returns the folder.

        ``section`` is the profile's section of its settings (`mechanism: probe`), or ``settings`` gives them;
        ``inputs`` are paths and what else the workflow decides. ``title`` and ``table`` (a file) are for the report.
        """
        self.stages[name] = {"title": title, "table": table, "section": section, "chapter": [*self.chapters][-1]}
        notebook = notebook or name
        where = f"params/profiles/{self.profile.name}.yaml: {section or name}"
        for wildcards in jobs:
            of = wildcards.get("model", ""), wildcards.get("variant", "")
            given = settings(**wildcards) if settings else self.section(section, notebook, *of) if section else {}
            decided = {"output_folder": folder.format(**wildcards), **inputs(**wildcards)}
            if both := sorted(set(given) & set(decided)):
                raise UserError(f"{where}: unknown key {both[0]!r}: the workflow decides it")
            parameters, file = {**given, **decided}, paths.relative(notebook_file(notebook))
            validated(declaration(notebook), parameters, where)
            job = Job(name, file, decided["output_folder"], dict(wildcards), parameters)
            self.jobs[name, *sorted(wildcards.items())] = job
        return folder

    def parameters(self, stage: str, wildcards: Wildcards) -> str:
        """What the notebook of one job is given, as JSON."""
        parameters = self.jobs[stage, *sorted(wildcards.items())].parameters
        plain = json.loads(json.dumps(parameters))  # whose keys are words, so that they can be sorted
        return json.dumps(plain, ensure_ascii=False, sort_keys=True)

    def resolved(self, stage: str, **wildcards: str) -> dict[str, Any]:
        """All parameters of one job, defaults included; of stages with further sets of prompts those of the first."""
        if (stage, *sorted(wildcards.items())) not in self.jobs:
            wildcards |= {"set": ""}
        return self.jobs[stage, *sorted(wildcards.items())].resolved()

    def reported(self, part: str = "") -> list[Job]:
        """The jobs that the report is about, or with ``FIRST`` its early site: those on the first languages alone, and
        what they read.
        """
        jobs: list[Job] = []
        for job in reversed(self.jobs.values()):  # each is registered after those that it reads
            chosen = (job.wildcards.get("set") == FIRST) == bool(part)
            if part and "set" not in job.wildcards:
                read = [f"{value}/" for other in jobs for value in other.parameters.values()]
                chosen = any(path.startswith(f"{job.folder}/") for path in read)
            jobs += [job] if chosen else []
        return jobs[::-1]

    def manifests(self, part: str = "", *chapters: str) -> list[str]:
        """The manifests of these jobs, or of those of some chapters: what the report waits for."""
        return [f"{job.folder}/{MANIFEST}" for job in self.reported(part)
                if not chapters or self.stages[job.stage]["chapter"] in chapters]  # fmt: skip

    def record(self, part: str = "") -> str:
        """All that the report needs to know of the run, or with ``FIRST`` its early site, as JSON."""
        profile, jobs = self.profile, [asdict(job) for job in self.reported(part)]
        if part:
            early = {name for model in self.models for name in self.early(model)}
            tuned = {name: variant for name, variant in profile.variants.items() if name in early}
            profile = profile.model_copy(update={
                "languages": profile.first, "variants": tuned or profile.variants, "first": None, "labels": None,
                "control": None, "more_prompts": {}})  # fmt: skip
            for job in jobs:
                job["wildcards"] |= {"set": ""} if "set" in job["wildcards"] else {}
        record = {
            "profile": profile.model_dump(mode="json"),
            "models": [self.model_file(model).model_dump(mode="json") for model in self.models],
            "chapters": self.chapters,
            "stages": self.stages,
            "sections": self.sections[part],
            "jobs": jobs,
        }
        return json.dumps(record, ensure_ascii=False, indent=1)

    @property
    def models(self) -> list[str]:
        """Folder names of the models."""
        return list(self.listed)

    def model_file(self, model: str) -> ModelFile:
        """The model of a folder name."""
        return load_model(self.listed[model])

    def variants(self, model: str) -> list[str]:
        """``base`` and the tuned variants of a model, but for optional ones whose pairs are not available."""
        return [name for name in variants_of(self.profile, self.listed[model]) if name not in self.skipped]

    def compared(self, model: str) -> list[str]:
        """Those of them that the main tables compare: all but the ablations."""
        return [variant for variant in self.variants(model) if not is_ablation(self.profile, variant)]

    def early(self, model: str) -> list[str]:
        """Those that the site on the first languages compares: the base model and the first tuned one, or none."""
        compared = self.compared(model)
        return compared[:2] if self.profile.first and compared[1:] else []

    def tuned(self, model: str) -> list[str]:
        """The variants that this profile tunes itself."""
        return [variant for variant in self.variants(model) if tuned_by(self.profile, variant)]

    def kinds(self, model: str) -> list[str]:
        """The kinds of preference pairs that the tuned variants of a model use."""
        return sorted({self.profile.variants[variant].pairs for variant in self.tuned(model)})

    @cached_property
    def skipped(self) -> set[str]:
        """The optional variants whose pairs are not available."""
        places = {kind: pairs.get("data") or pairs.get("folder", "") for kind, pairs in self.profile.pairs.items()}
        return {name for name, variant in self.profile.variants.items()
                if variant.optional and not is_available(places[variant.pairs])}  # fmt: skip

    @cached_property
    def prompt_sets(self) -> dict[str, list[str]]:
        """The further sets of prompts that are evaluated, with their languages; of an optional set those available."""
        languages = self.profile.languages
        found = {name: languages_available(prompts.source, languages, prompts.folder) if prompts.optional else languages
                 for name, prompts in self.profile.more_prompts.items()}  # fmt: skip
        return {name: languages for name, languages in found.items() if languages}

    def prompt_parameters(self, prompt_set: str = "", variant: str = "") -> dict[str, Any]:
        """The evaluation prompts, or a further set, as a notebook takes them; an ablation may have fewer."""
        chosen = self.profile.more_prompts[prompt_set] if prompt_set else self.profile.prompts
        fewer = self.profile.variants[variant].prompt_limit if variant in self.profile.variants else None
        return {"prompts_source": chosen.source, "prompts_folder": chosen.folder, "prompt_limit": fewer or chosen.limit,
                "prompts_column": chosen.column, "prompts_strip": chosen.strip}  # fmt: skip

    def evaluated_prompts(self) -> list[dict[str, Any]]:
        """All sets of evaluation prompts, the first one and the further ones: what each is read with, and languages."""
        sets = [(self.profile.prompts, self.profile.languages)]
        sets += [(self.profile.more_prompts[name], languages) for name, languages in self.prompt_sets.items()]
        return [prompts.arguments() | {"languages": languages} for prompts, languages in sets]

    def prompt_files(self, prompt_set: str = "") -> list[str]:
        """The files that the prompts come from, as far as they are this project's or a reader's own."""
        chosen = self.profile.more_prompts[prompt_set] if prompt_set else self.profile.prompts
        files = set[str]()
        for language in self.languages(prompt_set=prompt_set) if chosen.source in ("project", "own") else ():
            with contextlib.suppress(UserError):  # the checks before a run say what is wrong
                files.add(paths.relative(prompt_file(chosen.source, language, chosen.folder)))
        return _without_braces(files)

    def own_files(self, stage: str, wildcards: Wildcards) -> list[str]:
        """The files of a reader's own that one job reads: pairs, labelled texts, and what its scorers are made of."""
        given = self.jobs[stage, *sorted(wildcards.items())].parameters
        scorers = [given.get("scorer"), given.get("second_scorer"), *given.get("scorers", [])]
        of_scorers = [str(name).partition(":")[2] for name in scorers if str(name).startswith(("stored:", "head:"))]
        return local_files(given.get("data"), given.get("texts"), *of_scorers)

    def prefixes(self, model: str, *variants: str) -> list[str]:
        """What some variants of a model, by default all of them, put before prompts to ask for politeness."""
        asked = {self.section("generate", "generate", model, variant).get("prefix", "none")
                 for variant in variants or self.variants(model)}  # fmt: skip
        return sorted(asked - {"none"})

    def languages(self, variant: str = "", prompt_set: str = "") -> list[str]:
        """The languages that a variant is evaluated in."""
        return self.prompt_sets[prompt_set] if prompt_set else languages_of(self.profile, variant)

    def section(self, section: str, notebook: str, model: str = "", variant: str = "") -> dict[str, Any]:
        """The settings of a section that a notebook has: a later source wins, model file, profile, variant."""
        sources: list[Any] = [self.model_file(model)] if model in self.listed else []
        sources += [self.profile, self.profile.variants.get(variant)]
        found: dict[str, Any] = {}
        for source in sources:
            for key in section.split(": "):
                source = source.get(key) if isinstance(source, dict) else getattr(source, key, None)
            found |= dict(source or {})
        # Two notebooks may share a section, of which each takes its own part.
        known = declaration(notebook).model_fields
        return {key: value for key, value in found.items() if key in known}

    def source(self, model: str, *others: str) -> str:
        """Where the weights of a model and of others come from, as JSON: a changed model file runs its stages again."""
        sources = [self.model_file(model).source()]
        for name in others:
            with contextlib.suppress(UserError):  # the checks before a run say what is wrong
                sources.append(load_model(name).source())
        return json.dumps(sources if others else sources[0], sort_keys=True)


def local_files(*named: str | None) -> list[str]:
    """The files that some names mean on this machine, each a file or a folder, for the workflow to notice a change."""
    found = set[str]()
    for name in filter(None, named):
        with contextlib.suppress(UserError):  # the checks before a run say what is wrong
            found |= set(map(paths.relative, visible_files(local_path(name))))
    return _without_braces(found)


def _without_braces(files: set[str]) -> list[str]:
    return sorted(file for file in files if "{" not in file)  # which Snakemake cannot have in a path


def each(**wildcards: Iterable[str]) -> Iterator[dict[str, str]]:
    """Every combination of some wildcards, as jobs of a stage."""
    for values in itertools.product(*wildcards.values()):
        yield dict(zip(wildcards, values, strict=True))


def load(profile: str) -> Run:
    """The run of a profile, as the Snakefile and its rules register it; what Snakemake refuses is a ``UserError``."""
    load_profile(profile)  # whose mistakes read better than from within Snakemake
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import WorkflowError
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    root = paths.root()
    silent = OutputSettings(quiet={Quietness.ALL}, dryrun=True, enable_file_logging=False)
    with contextlib.chdir(root), SnakemakeApi(silent) as api:
        try:
            workflow = api.workflow(ResourceSettings(cores=1), snakefile=root / "Snakefile", workdir=root,
                                    config_settings=ConfigSettings(config={"profile": profile}))  # fmt: skip
            run: Run = workflow._workflow.globals["run"]  # it has no public name
        except WorkflowError as error:
            raise UserError(str(error)) from None
    return run


def write_record(profile: str) -> Path:
    """Write :meth:`Run.record` of a profile that the workflow has not run, or of its early site, whose name is that of
    the profile, a slash and ``FIRST``; returns its path.
    """
    name, _, part = profile.partition("/")
    with atomic_path(paths.profile_run(profile) / RECORD) as temporary:
        temporary.write_text(load(name).record(part) + "\n", "utf-8")
    return paths.profile_run(profile) / RECORD


def record_file(profile: str) -> Path:
    """The record of a profile's run, written now where the workflow has not run it."""
    file = paths.profile_run(profile) / RECORD
    return file if file.is_file() else write_record(profile)
