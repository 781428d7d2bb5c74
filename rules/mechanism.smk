# Why it transfers: the toxicity probe, the value vectors along it, their activations, what shifting them does, and where
# tuning moves the residual stream.

run.chapter(
    "mechanism",
    "the toxicity probe, value vectors, activations and interventions",
    section="mechanism",
    included=bool(run.profile.mechanism),
)
EXPLAINED = run.models if run.profile.mechanism else []


def labelled(model, texts):
    """The continuations that stand in for labelled texts where the profile names no file of them."""
    return "" if texts else PAIRS.format(model=model, kind="on-policy") + "/continuations.parquet"


def probe_texts(model):
    return labelled(model, run.section("mechanism: probe", "probe").get("texts"))


PROBE = run.stage(
    "probe",
    f"{RUN}/{{model}}/probe",
    title="Toxicity probe",
    section="mechanism: probe",
    jobs=each(model=EXPLAINED),
    inputs=lambda model: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "continuations": probe_texts(model),
        "scores": scores_of(model, "base")[0],
        "languages": run.profile.languages,
    },
    table="quality.parquet",
)


rule probe:
    message: "toxicity probe of {wildcards.model}"
    input:
        notebook="notebooks/mechanism/probe.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        labelled=lambda w: PAIRS.format(model=w.model, kind="on-policy") + "/manifest.json" if probe_texts(w.model) else [],
        scores=lambda w: scores_of(w.model, "base"),
        own=lambda w: run.own_files("probe", w),
    output:
        manifest=f"{PROBE}/manifest.json",
        probe=f"{PROBE}/probe.safetensors",
        metrics=f"{PROBE}/metrics.json",
        notebook=f"{PROBE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("probe", w),
        source=lambda w: run.source(w.model),
    log: f"{PROBE}/log.txt",
    benchmark: f"{PROBE}/benchmark.tsv"
    priority: 2  # a chain of stages that one core takes minutes for begins here
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


VALUE_VECTORS = run.stage(
    "value_vectors",
    f"{RUN}/{{model}}/value_vectors",
    title="Value vectors",
    section="mechanism: value_vectors",
    jobs=each(model=EXPLAINED),
    settings=lambda model: run.prompt_parameters() | run.section("mechanism: value_vectors", "value_vectors"),
    inputs=lambda model: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "probe": PROBE.format(model=model) + "/probe.safetensors",
    },
    table="sources.parquet",
)


rule value_vectors:
    message: "value vectors of {wildcards.model}"
    input:
        notebook="notebooks/mechanism/value_vectors.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        probe=f"{PROBE}/probe.safetensors",
        probed=f"{PROBE}/manifest.json",
        prompts=run.prompt_files(),
    output:
        manifest=f"{VALUE_VECTORS}/manifest.json",
        sources=f"{VALUE_VECTORS}/sources.parquet",
        metrics=f"{VALUE_VECTORS}/metrics.json",
        notebook=f"{VALUE_VECTORS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("value_vectors", w),
        source=lambda w: run.source(w.model),
    log: f"{VALUE_VECTORS}/log.txt",
    benchmark: f"{VALUE_VECTORS}/benchmark.tsv"
    priority: 2
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


ACTIVATIONS = run.stage(
    "activations",
    f"{RUN}/{{model}}/{{variant}}/activations",
    title="Activations",
    section="mechanism: activations",
    jobs=[{"model": model, "variant": variant} for model in EXPLAINED for variant in run.compared(model)],
    settings=lambda model, variant: run.prompt_parameters() | run.section("mechanism: activations", "activations"),
    inputs=lambda model, variant: {
        "checkpoint": checkpoint(model, variant),
        "dtype": run.model_file(model).dtype,
        "sources": VALUE_VECTORS.format(model=model) + "/sources.parquet",
        "languages": run.profile.languages,
    },
    table="neurons.parquet",
)


rule activations:
    message: "activations: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/mechanism/activations.ipynb",
        checkpoint=lambda w: f"{checkpoint(w.model, w.variant)}/manifest.json",
        sources=f"{VALUE_VECTORS}/sources.parquet",
        prompts=run.prompt_files(),
    output:
        manifest=f"{ACTIVATIONS}/manifest.json",
        metrics=f"{ACTIVATIONS}/metrics.json",
        notebook=f"{ACTIVATIONS}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("activations", w),
        source=lambda w: run.source(w.model),
    log: f"{ACTIVATIONS}/log.txt",
    benchmark: f"{ACTIVATIONS}/benchmark.tsv"
    priority: 2
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


INTERVENE = run.stage(
    "intervene",
    f"{RUN}/{{model}}/base/intervene",
    title="Intervention",
    section="mechanism: intervene",
    jobs=each(model=EXPLAINED),
    settings=lambda model: run.prompt_parameters() | run.section("mechanism: intervene", "intervene"),
    inputs=lambda model: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "sources": VALUE_VECTORS.format(model=model) + "/sources.parquet",
        "probe": PROBE.format(model=model) + "/probe.safetensors",
        "languages": run.profile.languages,
    },
    table="continuations.parquet",
)


rule intervene:
    message: "intervention: {wildcards.model}"
    input:
        notebook="notebooks/mechanism/intervene.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        sources=f"{VALUE_VECTORS}/sources.parquet",
        probed=f"{PROBE}/manifest.json",
        prompts=run.prompt_files(),
        neutral="params/prompts/neutral.yaml",
        own=lambda w: run.own_files("intervene", w),
    output:
        manifest=f"{INTERVENE}/manifest.json",
        metrics=f"{INTERVENE}/metrics.json",
        notebook=f"{INTERVENE}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("intervene", w),
        source=lambda w: run.source(w.model),
    log: f"{INTERVENE}/log.txt",
    benchmark: f"{INTERVENE}/benchmark.tsv"
    priority: 2
    resources:
        gpu=gpu,
        mem_mb=lambda w: (2 if any(run.resolved("intervene", model=w.model)["subtract"]) else 1) * mem_mb(w),
    shell: EXECUTE


RESIDUAL = run.stage(
    "residual",
    f"{RUN}/{{model}}/{{variant}}/residual",
    title="Residual stream",
    section="mechanism: residual",
    jobs=[
        {"model": model, "variant": variant}
        for model in EXPLAINED
        for variant in run.compared(model)
        if run.profile.mechanism.residual is not None and checkpoint(model, variant) != base(model)
    ],
    settings=lambda model, variant: run.prompt_parameters() | run.section("mechanism: residual", "residual"),
    inputs=lambda model, variant: {
        "checkpoint": base(model),
        "tuned": checkpoint(model, variant),
        "sources": VALUE_VECTORS.format(model=model) + "/sources.parquet",
        "languages": run.profile.languages,
    },
    table="shift.parquet",
)


rule residual:
    message: "residual stream: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/mechanism/residual.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        tuned=lambda w: f"{checkpoint(w.model, w.variant)}/manifest.json",
        sources=f"{VALUE_VECTORS}/sources.parquet",
        prompts=run.prompt_files(),
    output:
        manifest=f"{RESIDUAL}/manifest.json",
        metrics=f"{RESIDUAL}/metrics.json",
        notebook=f"{RESIDUAL}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("residual", w),
        source=lambda w: run.source(w.model),
    log: f"{RESIDUAL}/log.txt",
    benchmark: f"{RESIDUAL}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE
