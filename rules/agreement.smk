# The same continuations under several scorers. One job a model and not one a language, so that a large scorer is loaded
# once; it waits for the evaluations, whose scores are in the cache by then.

AGREEMENT = stage_folder(paths.agreement, "{model}")


rule agreement:
    message: "agreement of scorers: {wildcards.model}"
    input:
        notebook="notebooks/agreement.ipynb",
        evaluations=lambda w: graph.evaluations(w.model, *graph.compared(w.model)),
    output:
        manifest=f"{AGREEMENT}/manifest.json",
        scores=f"{AGREEMENT}/scores.parquet",
        metrics=f"{AGREEMENT}/metrics.json",
        notebook=f"{AGREEMENT}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("agreement", paths.agreement(profile, w.model), w.model),
    log: f"{AGREEMENT}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=4000,
    shell: EXECUTE
