# Continuations, their scores, and the metrics of each language. A profile's further sets of prompts (`more_prompts`) have
# folders of their own, and are never pooled with the first: {set} is empty for that, else the name of a set and a slash.
# So have the profile's first languages (`first`), for the early site: the first prompts again, and {set} is FIRST. What
# these jobs sample and score is kept where the jobs of all languages wait for it, and take it over.

EVALUATED = [{"model": model, "variant": variant, "set": ""} for model in run.models for variant in run.variants(model)]
EVALUATED += [
    {"model": model, "variant": variant, "set": f"{name}/"}
    for name in run.prompt_sets
    for model in run.models
    for variant in run.compared(model)
]
EVALUATED += [{"model": model, "variant": variant, "set": FIRST} for model in run.models for variant in run.early(model)]


wildcard_constraints:
    set=any_of(FIRST, *(f"{name}/" for name in run.prompt_sets), ""),


def prompt_set(set):
    return "" if set == FIRST else set.rstrip("/")


def languages(variant, set):
    return run.profile.first if set == FIRST else run.languages(variant, prompt_set(set))


def kept(stage, model, variant, set):
    """Where a job keeps its shards: in its own folder, or on the first languages in that of the job of all."""
    return f"{RUN}/{model}/{variant}/{stage}/parts" if set == FIRST else ""


def early(stage, w):
    """What a job of all languages waits for, since it takes over its shards: that of the first ones."""
    named = [stage.format(model=w.model, variant=w.variant, set=FIRST) + "/manifest.json"]
    return named if not w.set and w.variant in run.early(w.model) else []


def experts(model, variant):
    """The checkpoints whose logits steer the sampling of a variant: of an expert and an anti-expert, or none."""
    named = run.section("generate", "generate", model, variant).get("experts", [])
    return [checkpoint(model, name) for name in named]


GENERATE = run.stage(
    "generate",
    f"{RUN}/{{model}}/{{variant}}/{{set}}generate",
    title="Continuations",
    section="generate",
    jobs=EVALUATED,
    settings=lambda model, variant, set: {
        **run.section("generate", "generate", model, variant),
        **({"experts": found} if (found := experts(model, variant)) else {}),
    },
    inputs=lambda model, variant, set: {
        "checkpoint": checkpoint(model, variant),
        "dtype": run.model_file(model).dtype,
        "languages": languages(variant, set),
        "parts": kept("generate", model, variant, set),
        **run.prompt_parameters(prompt_set(set), variant),
    },
    table="continuations.parquet",
)


rule generate:
    message: "continuations: {wildcards.model}, {wildcards.variant} {wildcards.set}"
    input:
        notebook="notebooks/evaluation/generate.ipynb",
        checkpoint=lambda w: f"{checkpoint(w.model, w.variant)}/manifest.json",
        prompts=lambda w: run.prompt_files(prompt_set(w.set)),
        prefix=lambda w: ["params/prompts/politeness.yaml"] if run.prefixes(w.model, w.variant) else [],
        experts=lambda w: [f"{expert}/manifest.json" for expert in experts(w.model, w.variant)],
        early=lambda w: early(GENERATE, w),
    output:
        manifest=f"{GENERATE}/manifest.json",
        continuations=f"{GENERATE}/continuations.parquet",
        notebook=f"{GENERATE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("generate", w),
        source=lambda w: run.source(w.model),
    log: f"{GENERATE}/log.txt",
    benchmark: f"{GENERATE}/benchmark.tsv"
    priority: sooner("generate", 1)
    resources:
        gpu=gpu,
        mem_mb=lambda w: (3 if experts(w.model, w.variant) else 1) * mem_mb(w),
    shell: EXECUTE


def reference_model(model):
    """The checkpoint whose perplexity measures fluency: the base model, another one, or none."""
    named = run.section("evaluate", "score", model).get("reference_model", "base")
    return {"base": base(model), "none": ""}.get(named, named)


def other_reference_models(model):
    """The models beside the base model whose perplexity measures fluency."""
    settings = run.section("evaluate", "score", model)
    named = [settings.get("reference_model"), settings.get("second_reference_model")]
    return [name for name in named if name not in (None, "base", "none")]


def early_pairs(model):
    """The preference pairs of the variants that the early site is about."""
    tuned = [name for name in run.early(model) if {"model": model, "variant": name} in MADE_BY["dpo"]]
    return sorted({pairs_of(model, name) for name in tuned})


SCORE = run.stage(
    "score",
    f"{RUN}/{{model}}/{{variant}}/{{set}}score",
    title="Scores",
    section="evaluate",
    jobs=EVALUATED,
    settings=lambda model, variant, set: {
        **run.section("evaluate", "score", model, variant), "reference_model": reference_model(model)
    },
    inputs=lambda model, variant, set: {
        "continuations": GENERATE.format(model=model, variant=variant, set=set) + "/continuations.parquet",
        "dtype": run.model_file(model).dtype,
        "parts": kept("score", model, variant, set),
    },
    table="scores.parquet",
)


rule score:
    message: "scores: {wildcards.model}, {wildcards.variant} {wildcards.set}"
    input:
        notebook="notebooks/evaluation/score.ipynb",
        continuations=f"{GENERATE}/continuations.parquet",
        generated=f"{GENERATE}/manifest.json",
        reference_model=lambda w: f"{base(w.model)}/manifest.json",
        own=lambda w: run.own_files("score", w),
        early=lambda w: early(SCORE, w),
        # On two cores the early site is there sooner if these scores leave both to DPO, and run beside what follows it.
        pairs=lambda w: map(ancient, early_pairs(w.model)) if w.variant == "base" and w.set == FIRST else [],
    output:
        manifest=f"{SCORE}/manifest.json",
        scores=f"{SCORE}/scores.parquet",
        metrics=f"{SCORE}/metrics.json",
        notebook=f"{SCORE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("score", w),
        source=lambda w: run.source(w.model, *other_reference_models(w.model)),
    log: f"{SCORE}/log.txt",
    benchmark: f"{SCORE}/benchmark.tsv"
    priority: sooner("score", 1)
    threads: lambda w: 2 if is_early("score", w) and w.variant != "base" else 1
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


EVALUATE = run.stage(
    "evaluate",
    f"{RUN}/{{model}}/{{variant}}/{{set}}evaluate/{{lang}}",
    title="Evaluation",
    section="evaluate",
    jobs=[
        {**job, "lang": language}
        for job in EVALUATED
        for language in languages(job["variant"], job["set"])
    ],
    inputs=lambda model, variant, set, lang: {
        "scores": SCORE.format(model=model, variant=variant, set=set) + "/scores.parquet",
        "lang": lang,
    },
    table="metrics.json",
)


# Reads a table: no model, no GPU.
rule evaluate:
    message: "evaluation: {wildcards.model}, {wildcards.variant}, {wildcards.lang} {wildcards.set}"
    input:
        notebook="notebooks/evaluation/evaluate.ipynb",
        scores=f"{SCORE}/scores.parquet",
        scored=f"{SCORE}/manifest.json",
    output:
        manifest=f"{EVALUATE}/manifest.json",
        metrics=f"{EVALUATE}/metrics.json",
        notebook=f"{EVALUATE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("evaluate", w),
    log: f"{EVALUATE}/log.txt",
    benchmark: f"{EVALUATE}/benchmark.tsv"
    priority: sooner("evaluate")
    resources:
        mem_mb=2000,
    shell: EXECUTE


# On a cluster it runs where the command does, in seconds, and waits in no queue.
localrules:
    evaluate,


def scores_of(model, *variants):
    """The scores of some variants on the first set of prompts."""
    return [SCORE.format(model=model, variant=variant, set="") + "/scores.parquet" for variant in variants]


def compared_scores(model):
    """The scores of the variants that the main tables compare, by variant."""
    return dict(zip(run.compared(model), scores_of(model, *run.compared(model)), strict=True))


def evaluations(model, variant):
    """The metrics of one variant in each language, on the first set of prompts."""
    return {
        language: EVALUATE.format(model=model, variant=variant, set="", lang=language) + "/metrics.json"
        for language in run.languages(variant)
    }


def threshold_of_scores(model):
    """The threshold that the evaluation names for its scorer, where that is the first of those that are compared."""
    given = run.section("evaluate", "evaluate", model)
    if "threshold" not in given or "threshold" in run.profile.agreement:
        return {}
    scorer = checked("score", **run.section("evaluate", "score", model)).scorer
    first = checked("agreement", **run.profile.agreement).scorers[0]
    return {"threshold": given["threshold"]} if scorer == first else {}


# The same continuations under several scorers. One job a model and not one a language, so that a large scorer is loaded
# once; it waits for the scores, which are in the cache by then.
AGREEMENT = run.stage(
    "agreement",
    f"{RUN}/{{model}}/agreement",
    title="Agreement of scorers",
    section="agreement",
    jobs=each(model=run.models if run.profile.agreement is not None else []),
    inputs=lambda model: {"scores": compared_scores(model), **threshold_of_scores(model)},
    table="scores.parquet",
)


rule agreement:
    message: "agreement of scorers: {wildcards.model}"
    input:
        notebook="notebooks/evaluation/agreement.ipynb",
        scores=lambda w: compared_scores(w.model).values(),
        own=lambda w: run.own_files("agreement", w),
    output:
        manifest=f"{AGREEMENT}/manifest.json",
        scores=f"{AGREEMENT}/scores.parquet",
        linked=f"{AGREEMENT}/linked.parquet",
        metrics=f"{AGREEMENT}/metrics.json",
        notebook=f"{AGREEMENT}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("agreement", w),
    log: f"{AGREEMENT}/log.txt",
    benchmark: f"{AGREEMENT}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=4000,
    shell: EXECUTE


# Sheets for people to label; and what their labels say, once a profile names sheets that have come back.
LABEL_SHEET = run.stage(
    "label_sheet",
    f"{RUN}/{{model}}/labels",
    title="Sheets to label",
    section="labels",
    jobs=each(model=run.models if run.profile.labels is not None else []),
    inputs=lambda model: {
        "texts_of": compared_scores(model),
        "scores": AGREEMENT.format(model=model) + "/scores.parquet",
    },
)


rule label_sheet:
    message: "sheets to label: {wildcards.model}"
    input:
        notebook="notebooks/evaluation/label_sheet.ipynb",
        texts=lambda w: compared_scores(w.model).values(),
        scores=f"{AGREEMENT}/scores.parquet",
        agreed=f"{AGREEMENT}/manifest.json",
    output:
        manifest=f"{LABEL_SHEET}/manifest.json",
        metrics=f"{LABEL_SHEET}/metrics.json",
        notebook=f"{LABEL_SHEET}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("label_sheet", w),
    log: f"{LABEL_SHEET}/log.txt",
    benchmark: f"{LABEL_SHEET}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE


SHEETS = run.section("labels", "human_labels").get("sheets", [])
HUMAN_LABELS = run.stage(
    "human_labels",
    f"{RUN}/{{model}}/labels/people",
    title="Labels by people",
    section="labels",
    jobs=each(model=run.models if SHEETS else []),
    inputs=lambda model: {"keys": LABEL_SHEET.format(model=model) + "/keys"},
    table="drops.parquet",
)


rule human_labels:
    message: "labels by people: {wildcards.model}"
    input:
        notebook="notebooks/evaluation/human_labels.ipynb",
        sheets=[local(paths.given(sheet)) for sheet in SHEETS],
        drawn=f"{LABEL_SHEET}/manifest.json",
    output:
        manifest=f"{HUMAN_LABELS}/manifest.json",
        drops=f"{HUMAN_LABELS}/drops.parquet",
        metrics=f"{HUMAN_LABELS}/metrics.json",
        notebook=f"{HUMAN_LABELS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("human_labels", w),
    log: f"{HUMAN_LABELS}/log.txt",
    benchmark: f"{HUMAN_LABELS}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE
