# Where it transfers: retrieval of translations in the base model, and how the drop of toxicity goes with it.

run.chapter(
    "transfer",
    "sentence retrieval across languages and its correlation with the drop",
    section="transfer",
    included=bool(run.profile.alignment),
)
ALIGNED = run.models if run.profile.alignment else []

RETRIEVAL = run.stage(
    "retrieval",
    f"{RUN}/{{model}}/base/retrieval",
    title="Retrieval",
    section="alignment: retrieval",
    jobs=each(model=ALIGNED),
    inputs=lambda model: {
        "checkpoint": base(model),
        "dtype": run.model_file(model).dtype,
        "languages": run.profile.languages,
    },
    table="layers.parquet",
)


rule retrieval:
    message: "retrieval: {wildcards.model}"
    input:
        notebook="notebooks/transfer/retrieval.ipynb",
        checkpoint=lambda w: f"{base(w.model)}/manifest.json",
        sentences=lambda w: SENTENCES or local_files(run.section("alignment: retrieval", "retrieval").get("folder")),
    output:
        manifest=f"{RETRIEVAL}/manifest.json",
        metrics=f"{RETRIEVAL}/metrics.json",
        notebook=f"{RETRIEVAL}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("retrieval", w),
        source=lambda w: run.source(w.model),
    log: f"{RETRIEVAL}/log.txt",
    benchmark: f"{RETRIEVAL}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE


TRANSFER = run.stage(
    "transfer",
    f"{RUN}/{{model}}/{{variant}}/transfer",
    title="Transfer",
    section="alignment: transfer",
    jobs=[{"model": model, "variant": variant} for model in ALIGNED for variant in run.compared(model)[1:]],
    inputs=lambda model, variant: {
        "before": evaluations(model, "base"),
        "after": evaluations(model, variant),
        "retrieval": RETRIEVAL.format(model=model) + "/metrics.json",
    },
    table="languages.parquet",
)


rule transfer:
    message: "transfer: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/transfer/transfer.ipynb",
        before=lambda w: evaluations(w.model, "base").values(),
        after=lambda w: evaluations(w.model, w.variant).values(),
        retrieval=f"{RETRIEVAL}/manifest.json",
    output:
        manifest=f"{TRANSFER}/manifest.json",
        metrics=f"{TRANSFER}/metrics.json",
        notebook=f"{TRANSFER}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("transfer", w),
    log: f"{TRANSFER}/log.txt",
    benchmark: f"{TRANSFER}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE
