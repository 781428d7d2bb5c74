# What a model can still do: multiple-choice tasks through lm-evaluation-harness, before and after tuning.

run.chapter(
    "benchmarks",
    "multiple-choice questions before and after tuning",
    section="capability",
    included=run.profile.capability is not None,
)
TASKS = [local(file) for file in sorted((paths.root() / "params/tasks").iterdir())]

CAPABILITY = run.stage(
    "capability",
    f"{RUN}/{{model}}/{{variant}}/capability",
    title="Multiple-choice questions",
    section="capability",
    jobs=[
        {"model": model, "variant": variant}
        for model in run.models
        for variant in run.compared(model)
        if run.profile.capability is not None
    ],
    inputs=lambda model, variant: {"checkpoint": checkpoint(model, variant), "dtype": run.model_file(model).dtype},
)


rule capability:
    message: "capability: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/benchmarks/capability.ipynb",
        checkpoint=lambda w: f"{checkpoint(w.model, w.variant)}/manifest.json",
        tasks=TASKS,
    output:
        manifest=f"{CAPABILITY}/manifest.json",
        answers=f"{CAPABILITY}/items.parquet",
        metrics=f"{CAPABILITY}/metrics.json",
        notebook=f"{CAPABILITY}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("capability", w),
        source=lambda w: run.source(w.model),
    log: f"{CAPABILITY}/log.txt",
    benchmark: f"{CAPABILITY}/benchmark.tsv"
    resources:
        gpu=gpu,
        mem_mb=mem_mb,
    shell: EXECUTE
