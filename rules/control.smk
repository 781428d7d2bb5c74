# Attribute-controlled fine-tuning: a corpus, one checkpoint a method, and its continuations in every language. Which
# methods there are is for the profile's section `control` to say; `base` is the model that all of them start from.

CONTROL_CORPUS = stage_folder(paths.control_corpus, "{model}")
REGULARISE = stage_folder(paths.regularise, "{model}", "{method}")
CONSTRAINED_DECODE = stage_folder(paths.constrained_decode, "{model}", "{method}")


wildcard_constraints:
    method="|".join(map(re.escape, graph.methods())) or NOTHING,


rule control_corpus:
    message: "corpus of attribute control: {wildcards.model}"
    input:
        notebook="notebooks/control_corpus.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        prompts="params/prompts/training.yaml",
        evaluated=graph.prompts_left_out(),
    output:
        manifest=f"{CONTROL_CORPUS}/manifest.json",
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        metrics=f"{CONTROL_CORPUS}/metrics.json",
        notebook=f"{CONTROL_CORPUS}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters("control_corpus", paths.control_corpus(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{CONTROL_CORPUS}/log.txt",
    priority: 3
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule regularise:
    message: "attribute control: {wildcards.model}, {wildcards.method}"
    input:
        notebook="notebooks/regularise.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        made=f"{CONTROL_CORPUS}/manifest.json",
    output:
        manifest=f"{REGULARISE}/manifest.json",
        metrics=f"{REGULARISE}/metrics.json",
        iterations=f"{REGULARISE}/iterations.parquet",
        notebook=f"{REGULARISE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters(
            "regularise", paths.regularise(profile, w.model, w.method), w.model, method=w.method
        ),
        source=lambda w: graph.source(w.model),
    log: f"{REGULARISE}/log.txt",
    priority: 2
    resources:
        gpu=lambda w: graph.control_gpus(w.model, w.method),
        mem_mb=lambda w: 3 * graph.resource(w.model, "mem_mb"),  # gradients, optimizer state, and the head's body
    shell: EXECUTE


rule constrained_decode:
    message: "continuations under control: {wildcards.model}, {wildcards.method}"
    input:
        notebook="notebooks/constrained_decode.ipynb",
        checkpoint=lambda w: graph.controlled(w.model, w.method),
        prompts=graph.prompts(),
    output:
        manifest=f"{CONSTRAINED_DECODE}/manifest.json",
        continuations=f"{CONSTRAINED_DECODE}/continuations.parquet",
        notebook=f"{CONSTRAINED_DECODE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters(
            "constrained_decode",
            paths.constrained_decode(profile, w.model, w.method),
            w.model,
            method=w.method,
        ),
        source=lambda w: graph.source(w.model),
    log: f"{CONSTRAINED_DECODE}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE
