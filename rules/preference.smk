# Preference tuning: the base checkpoint, English preference pairs, DPO or ProFS, and one plain checkpoint of the tuned
# weights.

from polydetox.core.params import ON_POLICY, PAIRS as KNOWN_PAIRS, rtp_lx_held_out, tuned_by

run.chapter(
    "preference",
    "preference tuning of pretrained models and its effect on toxicity",
    section="detox",
    included=bool(run.profile.variants),
)
MADE_BY = {  # by the stage, what this profile tunes
    stage: [
        {"model": model, "variant": variant}
        for model in run.models
        for variant in run.tuned(model)
        if tuned_by(run.profile, variant) == stage
    ]
    for stage in ("dpo", "profs")
}
TUNED = [
    {"model": model, "variant": variant}
    for model in run.models
    for variant in run.variants(model)
    if variant == "published" or variant in run.tuned(model)
]
# The sentences for retrieval, where they are this project's.
OWN_SENTENCES = run.section("alignment: retrieval", "retrieval").get("sentences") == "project"
SENTENCES = ["params/prompts/sentences.yaml"] if OWN_SENTENCES else []
# All sets of evaluation prompts.
EVALUATION_PROMPTS = sorted({file for name in ("", *run.prompt_sets) for file in run.prompt_files(name)})

# Shared by all profiles.
CHECKPOINT = run.stage(
    "checkpoint",
    local(paths.runs() / "checkpoints/{model}"),
    title="Checkpoint",
    jobs=each(model=run.models),
    inputs=lambda model: {"model": run.listed[model]},
)


rule checkpoint:
    message: "checkpoint of {wildcards.model}"
    input:
        notebook="notebooks/preference/checkpoint.ipynb",
        weights=lambda w: local_files(run.model_file(w.model).path),
    output:
        manifest=f"{CHECKPOINT}/manifest.json",
        location=f"{CHECKPOINT}/checkpoint.json",
        notebook=f"{CHECKPOINT}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("checkpoint", w),
        source=lambda w: run.source(w.model),
    log: f"{CHECKPOINT}/log.txt",
    benchmark: f"{CHECKPOINT}/benchmark.tsv"
    priority: sooner("checkpoint")
    resources:
        mem_mb=mem_mb,
    shell: EXECUTE


# A published checkpoint has the whole vocabulary, and so has the base model that it is compared with.
TRIMMED = [model for model in run.models if run.profile.trim and not run.model_file(model).tuned]
TRIM = run.stage(
    "trim",
    f"{RUN}/{{model}}/trim",
    title="Vocabulary trimming",
    section="trim",
    jobs=each(model=TRIMMED),
    inputs=lambda model: {
        "checkpoint": CHECKPOINT.format(model=model),
        "dtype": run.model_file(model).dtype,
        "languages": run.profile.languages,
        "more_prompts": run.evaluated_prompts()[1:],
        "prefixes": run.prefixes(model),
        "sentences": bool(SENTENCES),
        **run.prompt_parameters(),
    },
)


rule trim:
    message: "vocabulary of {wildcards.model}"
    input:
        notebook="notebooks/preference/trim.ipynb",
        checkpoint=f"{CHECKPOINT}/manifest.json",
        prompts=EVALUATION_PROMPTS,
        training_prompts="params/prompts/training.yaml",
        sentences=SENTENCES,
        prefixes=lambda w: ["params/prompts/politeness.yaml"] if run.prefixes(w.model) else [],
    output:
        manifest=f"{TRIM}/manifest.json",
        metrics=f"{TRIM}/metrics.json",
        notebook=f"{TRIM}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("trim", w),
        source=lambda w: run.source(w.model),
    log: f"{TRIM}/log.txt",
    benchmark: f"{TRIM}/benchmark.tsv"
    priority: sooner("trim")
    threads: 2
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def base(model):
    """The stage whose checkpoint is sampled and tuned."""
    return (TRIM if model in TRIMMED else CHECKPOINT).format(model=model)


def checkpoint(model, variant="base"):
    """The stage whose checkpoint a variant has."""
    tuned = {"model": model, "variant": variant} in TUNED
    return MERGE.format(model=model, variant=variant) if tuned else base(model)


PAIRS = run.stage(
    "pairs",
    f"{RUN}/{{model}}/pairs/{{kind}}",
    title="Preference pairs",
    jobs=[{"model": model, "kind": kind} for model in run.models for kind in run.kinds(model)],
    section="pairs",
    settings=lambda model, kind: run.profile.pairs[kind],
    inputs=lambda model, kind: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "kind": ON_POLICY[0] if kind in ON_POLICY else kind if kind in KNOWN_PAIRS else "own",
        **({"held_out_prompts": rtp_lx_held_out(run.profile)} if kind == "rtp-lx" else {}),
        **({} if kind in (*ON_POLICY, "toxicity-pairwise") else {"evaluated": run.evaluated_prompts()}),
    },
    table="pairs.parquet",
)


rule pairs:
    message: "preference pairs ({wildcards.kind}) of {wildcards.model}"
    input:
        notebook="notebooks/preference/pairs.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        prompts="params/prompts/training.yaml",
        evaluated=lambda w: [] if w.kind in (*ON_POLICY, "toxicity-pairwise") else EVALUATION_PROMPTS,
        own=lambda w: run.own_files("pairs", w),
    output:
        manifest=f"{PAIRS}/manifest.json",
        pairs=f"{PAIRS}/pairs.parquet",
        metrics=f"{PAIRS}/metrics.json",
        notebook=f"{PAIRS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("pairs", w),
        source=lambda w: run.source(w.model),
    wildcard_constraints:
        kind=any_of(*run.profile.pairs),
    log: f"{PAIRS}/log.txt",
    benchmark: f"{PAIRS}/benchmark.tsv"
    priority: sooner("pairs", 3)  # the longest chain of stages begins here
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def pairs_of(model, variant):
    return PAIRS.format(model=model, kind=run.profile.variants[variant].pairs) + "/pairs.parquet"


DPO = run.stage(
    "dpo",
    f"{RUN}/{{model}}/{{variant}}/dpo",
    title="Training",
    section="dpo",
    jobs=MADE_BY["dpo"],
    inputs=lambda model, variant: {"checkpoint": base(model), "pairs": pairs_of(model, variant)},
)


rule dpo:
    message: "DPO ({wildcards.variant}) of {wildcards.model}"
    input:
        notebook="notebooks/preference/dpo.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        pairs=lambda w: pairs_of(w.model, w.variant),
    output:
        manifest=f"{DPO}/manifest.json",
        log=f"{DPO}/training_log.parquet",
        metrics=f"{DPO}/metrics.json",
        notebook=f"{DPO}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("dpo", w),
    log: f"{DPO}/log.txt",
    benchmark: f"{DPO}/benchmark.tsv"
    priority: sooner("dpo", 2, early=30)  # before two others that would take a core each
    threads: lambda w: 2 if is_early("dpo", w) else 1  # nothing runs beside the early one
    resources:
        gpu=gpu,
        mem_mb=lambda w: 2 * mem_mb(w),  # gradients and optimizer state
    shell: EXECUTE


PROFS = run.stage(
    "profs",
    f"{RUN}/{{model}}/{{variant}}/profs",
    title="Editing (ProFS)",
    section="profs",
    jobs=MADE_BY["profs"],
    inputs=lambda model, variant: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "pairs": pairs_of(model, variant),
    },
    table="layers.parquet",
)


rule profs:
    message: "ProFS ({wildcards.variant}) of {wildcards.model}"
    input:
        notebook="notebooks/preference/profs.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        pairs=lambda w: pairs_of(w.model, w.variant),
    output:
        manifest=f"{PROFS}/manifest.json",
        layers=f"{PROFS}/layers.parquet",
        metrics=f"{PROFS}/metrics.json",
        notebook=f"{PROFS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("profs", w),
    log: f"{PROFS}/log.txt",
    benchmark: f"{PROFS}/benchmark.tsv"
    priority: sooner("profs", 2)
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def made_by(model, variant):
    """The stage that makes the tuned weights of a variant of this profile."""
    return {"dpo": DPO, "profs": PROFS}[tuned_by(run.profile, variant)].format(model=model, variant=variant)


def tuned(model, variant):
    """What is merged: what this profile has tuned, or a published checkpoint, which knows no trimmed vocabulary."""
    if variant in run.profile.variants:
        return {"checkpoint": base(model), "tuned": made_by(model, variant)}
    published = run.model_file(model).tuned
    return {
        "checkpoint": CHECKPOINT.format(model=model),
        "tuned": published.hub or published.path,
        "revision": published.revision,
    }


def tuned_files(model, variant):
    """What a merge waits for: the tuning by this profile, or a published checkpoint's files on this machine."""
    if variant in run.profile.variants:
        return [f"{made_by(model, variant)}/manifest.json"]
    return local_files(run.model_file(model).tuned.path)


MERGE = run.stage("merge", f"{RUN}/{{model}}/{{variant}}/merge", title="Merge", jobs=TUNED, inputs=tuned)


rule merge:
    message: "merge ({wildcards.variant}) of {wildcards.model}"
    input:
        notebook="notebooks/preference/merge.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        tuned=lambda w: tuned_files(w.model, w.variant),
    output:
        manifest=f"{MERGE}/manifest.json",
        notebook=f"{MERGE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("merge", w),
        source=lambda w: run.source(w.model),
    log: f"{MERGE}/log.txt",
    benchmark: f"{MERGE}/benchmark.tsv"
    priority: sooner("merge", 2)
    resources:
        mem_mb=lambda w: 2 * mem_mb(w),  # before and after are compared
    shell: EXECUTE
