# Scores of all languages of one model and variant, told by one job ahead of the stage `evaluate`.
#
# The scorers and the judge of fluency, 3.7 billion parameters in the paper, are loaded once for a model and variant with
# `score_together: true`, and not for each language. The stage keeps its scores, which `evaluate` takes up: neither stage
# tells what is there. A language that is added later makes this stage run again, which scores the new language alone,
# and then the evaluations, which only sum up.

SCORE = stage_folder(paths.score, "{model}", "{variant}")


rule score:
    message: "scores in all languages: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/score.ipynb",
        continuations=lambda w: graph.tables(w.model, w.variant),
        judge=lambda w: graph.base(w.model),
    output:
        manifest=f"{SCORE}/manifest.json",
        notebook=f"{SCORE}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("score", paths.score(profile, w.model, w.variant), w.model, variant=w.variant),
        source=lambda w: graph.source(w.model),
    log: f"{SCORE}/log.txt",
    priority: 1
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE
