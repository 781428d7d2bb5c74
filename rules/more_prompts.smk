# Further sets of evaluation prompts, as a profile's `more_prompts` names them: the same stages with folders of their own.

MORE_GENERATE = stage_folder(paths.generate, "{model}", "{variant}", "{prompt_set}")
MORE_SCORE = stage_folder(paths.score, "{model}", "{variant}", "{prompt_set}")
MORE_EVALUATE = stage_folder(paths.evaluate, "{model}", "{variant}", "{lang}", "{prompt_set}")


wildcard_constraints:
    prompt_set="|".join(graph.prompt_sets) or NOTHING,


localrules:
    evaluate_more,


use rule generate as generate_more with:
    message: "continuations: {wildcards.model}, {wildcards.variant}, {wildcards.prompt_set}"
    input:
        notebook="notebooks/generate.ipynb",
        checkpoint=lambda w: graph.checkpoint(w.model, w.variant),
        prompts=lambda w: graph.prompts(w.prompt_set),
    output:
        manifest=f"{MORE_GENERATE}/manifest.json",
        continuations=f"{MORE_GENERATE}/continuations.parquet",
        notebook=f"{MORE_GENERATE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "generate", paths.generate(profile, w.model, w.variant, w.prompt_set), w.model,
            variant=w.variant, prompt_set=w.prompt_set,
        ),
        source=lambda w: graph.source(w.model),
    log: f"{MORE_GENERATE}/log.txt",


use rule score as score_more with:
    message: "scores: {wildcards.model}, {wildcards.variant}, {wildcards.prompt_set}"
    input:
        notebook="notebooks/score.ipynb",
        continuations=f"{MORE_GENERATE}/continuations.parquet",
        generated=f"{MORE_GENERATE}/manifest.json",
        judge=lambda w: graph.base(w.model),
    output:
        manifest=f"{MORE_SCORE}/manifest.json",
        scores=f"{MORE_SCORE}/scores.parquet",
        metrics=f"{MORE_SCORE}/metrics.json",
        notebook=f"{MORE_SCORE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "score", paths.score(profile, w.model, w.variant, w.prompt_set), w.model,
            variant=w.variant, prompt_set=w.prompt_set,
        ),
        source=lambda w: graph.source(w.model),
    log: f"{MORE_SCORE}/log.txt",


use rule evaluate as evaluate_more with:
    message: "evaluation: {wildcards.model}, {wildcards.variant}, {wildcards.lang}, {wildcards.prompt_set}"
    input:
        notebook="notebooks/evaluate.ipynb",
        scores=f"{MORE_SCORE}/scores.parquet",
        scored=f"{MORE_SCORE}/manifest.json",
    output:
        manifest=f"{MORE_EVALUATE}/manifest.json",
        metrics=f"{MORE_EVALUATE}/metrics.json",
        notebook=f"{MORE_EVALUATE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters(
            "evaluate", paths.evaluate(profile, w.model, w.variant, w.lang, w.prompt_set), w.model,
            variant=w.variant, lang=w.lang, prompt_set=w.prompt_set,
        ),
    log: f"{MORE_EVALUATE}/log.txt",
