# Attribute-controlled fine-tuning: a corpus, one checkpoint an algorithm, its continuations in every language and their
# evaluation; every two algorithms under a judge; training on labelled comments. Which algorithms there are is for the profile's
# section `control` to say; `base` is the model that all of them start from.

from polydetox.core.control import JIGSAW_CONDITIONS, control_algorithms, control_languages

CONTROL = run.profile.control
CONTROLLED = run.models if CONTROL else []
ALGORITHMS = control_algorithms(run.profile)
CONTROL_LANGUAGES = control_languages(run.profile)
CONDITIONS = JIGSAW_CONDITIONS if CONTROL and CONTROL.jigsaw_classify is not None else []
BY_ALGORITHM = list(each(model=CONTROLLED, algorithm=ALGORITHMS))

run.chapter(
    "attribute_control",
    "attribute-controlled fine-tuning [@meng2024attribute]",
    section="control",
    included=bool(CONTROL),
)


wildcard_constraints:
    algorithm=any_of(*ALGORITHMS),
    condition=any_of(*CONDITIONS),


def model_inputs(model):
    return {"checkpoint": base(model), "dtype": run.model_file(model).dtype}


def sampling(model, section, notebook):
    """How a model is sampled under control: as the profile's stage `generate` does it, unless the section says otherwise."""
    return {
        **run.prompt_parameters(),
        **run.section("generate", notebook, model),
        **run.section(f"control: {section}", notebook),
    }


def most_prompts():
    """How many evaluation prompts any stage takes that samples an algorithm; None: all."""
    own = [section["prompt_limit"] for section in (CONTROL.constrained_decode, CONTROL.jigsaw_classify or {})
           if "prompt_limit" in section]
    limits = [run.profile.prompts.limit, *own]
    return None if None in limits else max(limits)


def corpus_inputs(model):
    """The prompts are those whose statements are no part of a corpus that is read, and not sampled."""
    read = run.section("control: corpus", "control_corpus").get("source") != "model"
    prompts = {**run.prompt_parameters(), "prompt_limit": most_prompts()} if read else {}
    return {**model_inputs(model), **prompts}


CONTROL_CORPUS = run.stage(
    "control_corpus",
    f"{RUN}/{{model}}/control/corpus",
    title="Corpus of attribute control",
    section="control: corpus",
    jobs=each(model=CONTROLLED),
    inputs=corpus_inputs,
)


rule control_corpus:
    message: "corpus of attribute control: {wildcards.model}"
    input:
        notebook="notebooks/attribute_control/control_corpus.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        prompts="params/prompts/training.yaml",
        evaluated=run.prompt_files() if CONTROL and CONTROL.corpus.get("source") != "model" else [],
        own=lambda w: run.own_files("control_corpus", w),
    output:
        manifest=f"{CONTROL_CORPUS}/manifest.json",
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        metrics=f"{CONTROL_CORPUS}/metrics.json",
        notebook=f"{CONTROL_CORPUS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("control_corpus", w),
        source=lambda w: run.source(w.model),
    log: f"{CONTROL_CORPUS}/log.txt",
    benchmark: f"{CONTROL_CORPUS}/benchmark.tsv"
    priority: 3
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def regularise_settings(model, algorithm):
    return run.section("control: regularise", "regularise") | CONTROL.algorithms[algorithm].regularise


REGULARISE = run.stage(
    "regularise",
    f"{RUN}/{{model}}/control/{{algorithm}}/regularise",
    title="Attribute-controlled fine-tuning",
    section="control: regularise",
    jobs=[job for job in BY_ALGORITHM if job["algorithm"] != "base"],
    settings=regularise_settings,
    inputs=lambda model, algorithm: {
        **model_inputs(model),
        "algorithm": CONTROL.algorithms[algorithm].algorithm,
        "corpus": CONTROL_CORPUS.format(model=model) + "/corpus.parquet",
    },
)


rule regularise:
    message: "attribute control: {wildcards.model}, {wildcards.algorithm}"
    input:
        notebook="notebooks/attribute_control/regularise.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        made=f"{CONTROL_CORPUS}/manifest.json",
        own=lambda w: run.own_files("regularise", w),
    output:
        manifest=f"{REGULARISE}/manifest.json",
        metrics=f"{REGULARISE}/metrics.json",
        iterations=f"{REGULARISE}/iterations.parquet",
        notebook=f"{REGULARISE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("regularise", w),
        source=lambda w: run.source(w.model),
    log: f"{REGULARISE}/log.txt",
    benchmark: f"{REGULARISE}/benchmark.tsv"
    priority: 2
    resources:
        # Two where head and model train side by side.
        gpu=lambda w: gpu(w) * (regularise_settings(w.model, w.algorithm).get("devices") or 1),
        mem_mb=lambda w: 3 * mem_mb(w),  # gradients, optimizer state, and the head's backbone
    shell: EXECUTE


def controlled(model, algorithm):
    """The stage whose checkpoint a algorithm has."""
    return base(model) if algorithm == "base" else REGULARISE.format(model=model, algorithm=algorithm)


CONSTRAINED_DECODE = run.stage(
    "constrained_decode",
    f"{RUN}/{{model}}/control/{{algorithm}}/constrained_decode",
    notebook="generate",
    title="Continuations under attribute control",
    section="control: constrained_decode",
    jobs=BY_ALGORITHM,
    settings=lambda model, algorithm: sampling(model, "constrained_decode", "generate"),
    inputs=lambda model, algorithm: {
        **model_inputs(model),
        "checkpoint": controlled(model, algorithm),
        "languages": CONTROL_LANGUAGES,
    },
    table="continuations.parquet",
)


rule constrained_decode:
    message: "continuations under control: {wildcards.model}, {wildcards.algorithm}"
    input:
        notebook="notebooks/evaluation/generate.ipynb",
        checkpoint=lambda w: f"{controlled(w.model, w.algorithm)}/manifest.json",
        prompts=run.prompt_files(),
    output:
        manifest=f"{CONSTRAINED_DECODE}/manifest.json",
        continuations=f"{CONSTRAINED_DECODE}/continuations.parquet",
        notebook=f"{CONSTRAINED_DECODE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("constrained_decode", w),
        source=lambda w: run.source(w.model),
    log: f"{CONSTRAINED_DECODE}/log.txt",
    benchmark: f"{CONSTRAINED_DECODE}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def continuations_of(model, algorithm):
    return CONSTRAINED_DECODE.format(model=model, algorithm=algorithm) + "/continuations.parquet"


ATTRIBUTE_EVAL = run.stage(
    "attribute_eval",
    f"{RUN}/{{model}}/control/{{algorithm}}/attribute_eval",
    title="Evaluation of attribute control",
    section="control: attribute_eval",
    jobs=BY_ALGORITHM,
    inputs=lambda model, algorithm: {
        **model_inputs(model),
        "checkpoint": controlled(model, algorithm),
        "corpus": CONTROL_CORPUS.format(model=model) + "/corpus.parquet",
        "continuations": continuations_of(model, algorithm),
    },
)


rule attribute_eval:
    message: "evaluation of attribute control: {wildcards.model}, {wildcards.algorithm}"
    input:
        notebook="notebooks/attribute_control/attribute_eval.ipynb",
        checkpoint=lambda w: f"{controlled(w.model, w.algorithm)}/manifest.json",
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        continuations=f"{CONSTRAINED_DECODE}/continuations.parquet",
        tasks=TASKS,
        own=lambda w: run.own_files("attribute_eval", w),
    output:
        manifest=f"{ATTRIBUTE_EVAL}/manifest.json",
        scores=f"{ATTRIBUTE_EVAL}/scores.parquet",
        answers=f"{ATTRIBUTE_EVAL}/items.parquet",
        metrics=f"{ATTRIBUTE_EVAL}/metrics.json",
        notebook=f"{ATTRIBUTE_EVAL}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("attribute_eval", w),
        source=lambda w: run.source(w.model),
    log: f"{ATTRIBUTE_EVAL}/log.txt",
    benchmark: f"{ATTRIBUTE_EVAL}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def judge_of(model):
    """The judge of the win rates: the base model, or the one that the profile names."""
    named = CONTROL.win_rate.get("judge", "base")
    return base(model) if named == "base" else named


WIN_RATE = run.stage(
    "win_rate",
    f"{RUN}/{{model}}/control/win_rate",
    title="Win rates",
    section="control: win_rate",
    jobs=each(model=CONTROLLED),
    settings=lambda model: {**run.section("control: win_rate", "win_rate"), "judge": judge_of(model)},
    inputs=lambda model: {
        "dtype": run.model_file(model).dtype,
        "continuations": {algorithm: continuations_of(model, algorithm) for algorithm in ALGORITHMS},
        "lang": "en" if "en" in CONTROL_LANGUAGES else CONTROL_LANGUAGES[0],
    },
)


rule win_rate:
    message: "win rates: {wildcards.model}"
    input:
        notebook="notebooks/attribute_control/win_rate.ipynb",
        judge=lambda w: f"{base(w.model)}/manifest.json",
        continuations=lambda w: [continuations_of(w.model, algorithm) for algorithm in ALGORITHMS],
    output:
        manifest=f"{WIN_RATE}/manifest.json",
        pairs=f"{WIN_RATE}/pairs.parquet",
        metrics=f"{WIN_RATE}/metrics.json",
        notebook=f"{WIN_RATE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("win_rate", w),
        source=lambda w: run.source(w.model, *({judge_of(w.model)} - {base(w.model)})),
    log: f"{WIN_RATE}/log.txt",
    benchmark: f"{WIN_RATE}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


def comments_of(model):
    return labelled(model, (CONTROL.jigsaw_classify or {}).get("texts"))


JIGSAW_CLASSIFY = run.stage(
    "jigsaw_classify",
    f"{RUN}/{{model}}/control/jigsaw_classify/{{condition}}",
    title="Labelled comments",
    section="control: jigsaw_classify",
    jobs=each(model=CONTROLLED, condition=CONDITIONS),
    settings=lambda model, condition: sampling(model, "jigsaw_classify", "jigsaw_classify"),
    inputs=lambda model, condition: {
        **model_inputs(model),
        "condition": condition,
        "labelled": comments_of(model),
    },
)


rule jigsaw_classify:
    message: "labelled comments: {wildcards.model}, {wildcards.condition}"
    input:
        notebook="notebooks/attribute_control/jigsaw_classify.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        labelled=lambda w: PAIRS.format(model=w.model, kind="on-policy") + "/manifest.json" if comments_of(w.model) else [],
        prompts=run.prompt_files(),
        own=lambda w: run.own_files("jigsaw_classify", w),
    output:
        manifest=f"{JIGSAW_CLASSIFY}/manifest.json",
        metrics=f"{JIGSAW_CLASSIFY}/metrics.json",
        notebook=f"{JIGSAW_CLASSIFY}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("jigsaw_classify", w),
        source=lambda w: run.source(w.model),
    log: f"{JIGSAW_CLASSIFY}/log.txt",
    benchmark: f"{JIGSAW_CLASSIFY}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=lambda w: 3 * mem_mb(w),  # gradients and optimizer state
    shell: EXECUTE
