# Why it transfers: the stages of the sections 4 and 5 of the paper. Which of them a profile runs is for its sections
# `mechanism` and `alignment` to say.

PROBE = stage_folder(paths.probe, "{model}")
VALUE_VECTORS = stage_folder(paths.value_vectors, "{model}")
ACTIVATIONS = stage_folder(paths.activations, "{model}", "{variant}")
INTERVENE = stage_folder(paths.intervene, "{model}")
RETRIEVAL = stage_folder(paths.retrieval, "{model}")
TRANSFER = stage_folder(paths.transfer, "{model}", "{variant}")


rule probe:
    message: "toxicity probe of {wildcards.model}"
    input:
        notebook="notebooks/probe.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        labelled=lambda w: graph.labelled(w.model),
        evaluations=lambda w: graph.evaluations(w.model, "base"),
    output:
        manifest=f"{PROBE}/manifest.json",
        probe=f"{PROBE}/probe.safetensors",
        metrics=f"{PROBE}/metrics.json",
        notebook=f"{PROBE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("probe", paths.probe(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{PROBE}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule value_vectors:
    message: "value vectors of {wildcards.model}"
    input:
        notebook="notebooks/value_vectors.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        probe=f"{PROBE}/probe.safetensors",
        probed=f"{PROBE}/manifest.json",
        prompts=graph.prompts(),
    output:
        manifest=f"{VALUE_VECTORS}/manifest.json",
        sources=f"{VALUE_VECTORS}/sources.parquet",
        metrics=f"{VALUE_VECTORS}/metrics.json",
        notebook=f"{VALUE_VECTORS}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("value_vectors", paths.value_vectors(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{VALUE_VECTORS}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule activations:
    message: "activations: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/activations.ipynb",
        checkpoint=lambda w: graph.checkpoint(w.model, w.variant),
        sources=f"{VALUE_VECTORS}/sources.parquet",
        prompts=graph.prompts(),
    output:
        manifest=f"{ACTIVATIONS}/manifest.json",
        metrics=f"{ACTIVATIONS}/metrics.json",
        notebook=f"{ACTIVATIONS}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "activations", paths.activations(profile, w.model, w.variant), w.model, variant=w.variant
        ),
        source=lambda w: graph.source(w.model),
    log: f"{ACTIVATIONS}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule intervene:
    message: "intervention: {wildcards.model}"
    input:
        notebook="notebooks/intervene.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        sources=f"{VALUE_VECTORS}/sources.parquet",
        prompts=graph.prompts(),
        neutral="params/prompts/neutral.yaml",
    output:
        manifest=f"{INTERVENE}/manifest.json",
        metrics=f"{INTERVENE}/metrics.json",
        notebook=f"{INTERVENE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("intervene", paths.intervene(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{INTERVENE}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule retrieval:
    message: "retrieval: {wildcards.model}"
    input:
        notebook="notebooks/retrieval.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        prompts=graph.parallel(),
    output:
        manifest=f"{RETRIEVAL}/manifest.json",
        metrics=f"{RETRIEVAL}/metrics.json",
        notebook=f"{RETRIEVAL}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("retrieval", paths.retrieval(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{RETRIEVAL}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule transfer:
    message: "transfer: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/transfer.ipynb",
        evaluations=lambda w: graph.evaluations(w.model, "base", w.variant),
        retrieval=f"{RETRIEVAL}/manifest.json",
    output:
        manifest=f"{TRANSFER}/manifest.json",
        metrics=f"{TRANSFER}/metrics.json",
        notebook=f"{TRANSFER}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("transfer", paths.transfer(profile, w.model, w.variant), w.model, variant=w.variant),
    log: f"{TRANSFER}/log.txt",
    resources:
        mem_mb=2000,
    shell: EXECUTE
