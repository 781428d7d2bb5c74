# The workflow: one rule a stage, each running its notebook with papermill.
#
#   polydetox run --profile offline        the same with checks before it starts (what `make paper` does)
#   snakemake --config profile=offline -n  the plan
#
# Every stage's folder ends with manifest.json, which marks its success; the next stages wait for it.

import sys

from snakemake.exceptions import WorkflowError

from polydetox import paths
from polydetox.errors import UserError
from polydetox.workflow import Graph, local, manifest

try:
    graph = Graph(str(config.get("profile", "offline")))  # Snakemake makes a number of a name that looks like one
    graph.prompt_sets  # reads optional prompts, which may be damaged
except UserError as error:
    raise WorkflowError(str(error))

profile = graph.profile.name
RUN = local(paths.profile_run(profile))


def stage_folder(function, *names):
    """The folder of a stage with its wildcards left open."""
    return local(function(profile, *names))


TRIM = stage_folder(paths.trim, "{model}")
PAIRS = stage_folder(paths.pairs, "{model}", "{kind}")
DPO = stage_folder(paths.dpo, "{model}", "{variant}")
MERGE = stage_folder(paths.merge, "{model}", "{variant}")
GENERATE = stage_folder(paths.generate, "{model}", "{variant}")
SCORE = stage_folder(paths.score, "{model}", "{variant}")
EVALUATE = stage_folder(paths.evaluate, "{model}", "{variant}", "{lang}")
SUMMARY = stage_folder(paths.summary, "{section}")
CHECKPOINT = local(paths.checkpoint("{model}"))

# One notebook; what it prints goes to the job's log, and one line to the terminal when it ends. Each name is quoted for
# the shell (`:q`), and none can be taken for an option. This Python, since PATH cannot hold every folder's name.
EXECUTE = (
    "{sys.executable:q} -m polydetox execute --profile={profile:q} --threads={threads} --log={log:q}"
    " --parameters={params.parameters:q} -- {input.notebook:q} {output.notebook:q}"
)


# Matches no name: a profile without models, say, has no job of a model.
NOTHING = "(?!)"


wildcard_constraints:
    model="|".join(map(re.escape, graph.models)) or NOTHING,
    variant="|".join({variant for model in graph.models for variant in graph.variants(model)}) or NOTHING,
    lang="|".join(dict.fromkeys(["en", *graph.profile.languages])),
    kind="|".join(graph.profile.pairs) or NOTHING,
    section="|".join(graph.sections()),


# They read tables, in seconds: on a cluster they run where the command does, and wait in no queue.
localrules:
    evaluate,
    summary,
    render,


rule site:
    input:
        local(paths.site(profile) / "index.html"),


rule checkpoint:
    message: "checkpoint of {wildcards.model}"
    input:
        notebook="notebooks/checkpoint.ipynb",
    output:
        manifest=f"{CHECKPOINT}/manifest.json",
        location=f"{CHECKPOINT}/checkpoint.json",
        notebook=f"{CHECKPOINT}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("checkpoint", paths.checkpoint(w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{CHECKPOINT}/log.txt",
    resources:
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule trim:
    message: "vocabulary of {wildcards.model}"
    input:
        notebook="notebooks/trim.ipynb",
        checkpoint=f"{CHECKPOINT}/manifest.json",
        prompts=graph.prompts(),
        training_prompts="params/prompts/training.yaml",
    output:
        manifest=f"{TRIM}/manifest.json",
        metrics=f"{TRIM}/metrics.json",
        notebook=f"{TRIM}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("trim", paths.trim(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{TRIM}/log.txt",
    threads: 2
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule pairs:
    message: "preference pairs ({wildcards.kind}) of {wildcards.model}"
    input:
        notebook="notebooks/pairs.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        prompts="params/prompts/training.yaml",
    output:
        manifest=f"{PAIRS}/manifest.json",
        pairs=f"{PAIRS}/pairs.parquet",
        metrics=f"{PAIRS}/metrics.json",
        notebook=f"{PAIRS}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("pairs", paths.pairs(profile, w.model, w.kind), w.model, kind=w.kind),
        source=lambda w: graph.source(w.model),
    log: f"{PAIRS}/log.txt",
    priority: 3  # the longest chain of stages begins here
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule dpo:
    message: "DPO ({wildcards.variant}) of {wildcards.model}"
    input:
        notebook="notebooks/dpo.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        pairs=lambda w: stage_folder(paths.pairs, w.model, graph.profile.variants[w.variant].pairs) + "/pairs.parquet",
    output:
        manifest=f"{DPO}/manifest.json",
        log=f"{DPO}/training_log.parquet",
        metrics=f"{DPO}/metrics.json",
        notebook=f"{DPO}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("dpo", paths.dpo(profile, w.model, w.variant), w.model, variant=w.variant),
    log: f"{DPO}/log.txt",
    priority: 2
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: 2 * graph.resource(w.model, "mem_mb"),  # gradients and optimizer state
    shell: EXECUTE


rule merge:
    message: "merge ({wildcards.variant}) of {wildcards.model}"
    input:
        notebook="notebooks/merge.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        tuned=lambda w: graph.tuned(w.model, w.variant),
    output:
        manifest=f"{MERGE}/manifest.json",
        notebook=f"{MERGE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("merge", paths.merge(profile, w.model, w.variant), w.model, variant=w.variant),
        source=lambda w: graph.source(w.model),
    log: f"{MERGE}/log.txt",
    priority: 2
    resources:
        mem_mb=lambda w: 2 * graph.resource(w.model, "mem_mb"),  # before and after are compared
    shell: EXECUTE


rule generate:
    message: "continuations: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/generate.ipynb",
        checkpoint=lambda w: graph.checkpoint(w.model, w.variant),
        prompts=graph.prompts(),
    output:
        manifest=f"{GENERATE}/manifest.json",
        continuations=f"{GENERATE}/continuations.parquet",
        notebook=f"{GENERATE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "generate", paths.generate(profile, w.model, w.variant), w.model, variant=w.variant
        ),
        source=lambda w: graph.source(w.model),
    log: f"{GENERATE}/log.txt",
    priority: 1
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule score:
    message: "scores: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/score.ipynb",
        continuations=f"{GENERATE}/continuations.parquet",
        generated=f"{GENERATE}/manifest.json",
        judge=lambda w: graph.base(w.model),
    output:
        manifest=f"{SCORE}/manifest.json",
        scores=f"{SCORE}/scores.parquet",
        metrics=f"{SCORE}/metrics.json",
        notebook=f"{SCORE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "score", paths.score(profile, w.model, w.variant), w.model, variant=w.variant
        ),
        source=lambda w: graph.source(w.model),
    log: f"{SCORE}/log.txt",
    priority: 1
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


# Reads a table: no model, no GPU.
rule evaluate:
    message: "evaluation: {wildcards.model}, {wildcards.variant}, {wildcards.lang}"
    input:
        notebook="notebooks/evaluate.ipynb",
        scores=f"{SCORE}/scores.parquet",
        scored=f"{SCORE}/manifest.json",
    output:
        manifest=f"{EVALUATE}/manifest.json",
        metrics=f"{EVALUATE}/metrics.json",
        notebook=f"{EVALUATE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "evaluate", paths.evaluate(profile, w.model, w.variant, w.lang), w.model, variant=w.variant, lang=w.lang
        ),
    log: f"{EVALUATE}/log.txt",
    resources:
        mem_mb=2000,
    shell: EXECUTE


include: "rules/agreement.smk"
include: "rules/more_prompts.smk"
include: "rules/why.smk"
include: "rules/world.smk"
include: "rules/control.smk"
include: "rules/capability.smk"
include: "rules/control_eval.smk"


rule summary:
    message: "section of the report: {wildcards.section}"
    input:
        notebook="notebooks/summary_{section}.ipynb",
        results=graph.results(),
    output:
        manifest=f"{SUMMARY}/manifest.json",
        notebook=f"{SUMMARY}/notebook.ipynb",
    params:
        parameters=lambda w: graph.summary_parameters(w.section),
    log: f"{SUMMARY}/log.txt",
    resources:
        mem_mb=2000,
    shell: EXECUTE


rule render:
    message: "render the report"
    input:
        summaries=[manifest(paths.summary(profile, section)) for section in graph.sections()],
        results=graph.results(),
        book=[local(path) for path in sorted((paths.root() / "book").rglob("*")) if path.is_file()],
        project="_quarto.yml",
    output:
        index=local(paths.site(profile) / "index.html"),
    log: f"{RUN}/logs/render.txt",
    resources:
        mem_mb=2000,
    shell:
        "{sys.executable:q} -m polydetox render --profile={profile:q} --log={log:q}"
