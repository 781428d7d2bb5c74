# Attribute control, evaluated: each method by itself, every two methods under a judge, and training on labelled
# comments.

ATTRIBUTE_EVAL = stage_folder(paths.attribute_eval, "{model}", "{method}")
WIN_RATE = stage_folder(paths.win_rate, "{model}")
JIGSAW_CLASSIFY = stage_folder(paths.jigsaw_classify, "{model}", "{condition}")


wildcard_constraints:
    condition="|".join(graph.conditions()) or NOTHING,


rule attribute_eval:
    message: "evaluation of attribute control: {wildcards.model}, {wildcards.method}"
    input:
        notebook="notebooks/attribute_eval.ipynb",
        checkpoint=lambda w: graph.controlled(w.model, w.method),
        corpus=f"{CONTROL_CORPUS}/corpus.parquet",
        continuations=f"{CONSTRAINED_DECODE}/continuations.parquet",
        tasks=graph.task_files(),
    output:
        manifest=f"{ATTRIBUTE_EVAL}/manifest.json",
        scores=f"{ATTRIBUTE_EVAL}/scores.parquet",
        answers=f"{ATTRIBUTE_EVAL}/items.parquet",
        metrics=f"{ATTRIBUTE_EVAL}/metrics.json",
        notebook=f"{ATTRIBUTE_EVAL}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters(
            "attribute_eval", paths.attribute_eval(profile, w.model, w.method), w.model, method=w.method
        ),
        source=lambda w: graph.source(w.model),
    log: f"{ATTRIBUTE_EVAL}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule win_rate:
    message: "win rates: {wildcards.model}"
    input:
        notebook="notebooks/win_rate.ipynb",
        judge=lambda w: graph.base(w.model),
        continuations=lambda w: graph.judged_continuations(w.model),
    output:
        manifest=f"{WIN_RATE}/manifest.json",
        pairs=f"{WIN_RATE}/pairs.parquet",
        metrics=f"{WIN_RATE}/metrics.json",
        notebook=f"{WIN_RATE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters("win_rate", paths.win_rate(profile, w.model), w.model),
        source=lambda w: graph.source(w.model),
    log: f"{WIN_RATE}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE


rule jigsaw_classify:
    message: "labelled comments: {wildcards.model}, {wildcards.condition}"
    input:
        notebook="notebooks/jigsaw_classify.ipynb",
        checkpoint=lambda w: graph.base(w.model),
        labelled=lambda w: graph.labelled_comments(w.model),
        prompts=graph.prompts(),
    output:
        manifest=f"{JIGSAW_CLASSIFY}/manifest.json",
        metrics=f"{JIGSAW_CLASSIFY}/metrics.json",
        notebook=f"{JIGSAW_CLASSIFY}/notebook.ipynb",
    params:
        parameters=lambda w: graph.control_parameters(
            "jigsaw_classify",
            paths.jigsaw_classify(profile, w.model, w.condition),
            w.model,
            condition=w.condition,
        ),
        source=lambda w: graph.source(w.model),
    log: f"{JIGSAW_CLASSIFY}/log.txt",
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: 3 * graph.resource(w.model, "mem_mb"),  # gradients and optimizer state
    shell: EXECUTE
