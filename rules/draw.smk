# Continuations of all languages of one model and variant, drawn by one engine ahead of the stage `generate`.
#
# Loading a large model and starting vLLM takes longer than drawing one language; a profile with `draw_together: true`
# pays for it once. The stage keeps its batches, which `generate` puts into tables: neither stage draws what is there.
# The languages are no parameter here, since one that is added later must not make the others again: its own job of
# `generate` then draws it.

DRAW = stage_folder(paths.draw, "{model}", "{variant}")


rule draw:
    message: "continuations in all languages: {wildcards.model}, {wildcards.variant}"
    input:
        notebook="notebooks/draw.ipynb",
        checkpoint=lambda w: graph.checkpoint(w.model, w.variant),
        prompts=graph.prompts(),
    output:
        manifest=f"{DRAW}/manifest.json",
        notebook=f"{DRAW}/notebook.ipynb",
    params:
        parameters=lambda w: graph.parameters("draw", paths.draw(profile, w.model, w.variant), w.model, variant=w.variant),
        source=lambda w: graph.source(w.model),
    log: f"{DRAW}/log.txt",
    priority: 1
    resources:
        gpu=lambda w: graph.resource(w.model, "gpu"),
        mem_mb=lambda w: graph.resource(w.model, "mem_mb"),
    shell: EXECUTE
