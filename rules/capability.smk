# What a model can still do: multiple-choice tasks through lm-evaluation-harness, before and after tuning.

CAPABILITY = stage_folder(paths.capability, "{model}", "{variant}")


rule capability:
    message: "capability: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/capability.ipynb",
        checkpoint=lambda w: graph.checkpoint(w.model, w.variant),
        tasks=graph.task_files(),
    output:
        manifest=f"{CAPABILITY}/manifest.json",
        answers=f"{CAPABILITY}/items.parquet",
        metrics=f"{CAPABILITY}/metrics.json",
        notebook=f"{CAPABILITY}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "capability", paths.capability(profile, w.model, w.variant), w.model, variant=w.variant
        ),
        source=lambda w: graph.source(w.model),
    log: f"{CAPABILITY}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE
