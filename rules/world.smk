# The controlled world: for every size, alignment and seed a small model is pretrained, tuned on English and measured.

WORLD_PRETRAIN = stage_folder(paths.world_pretrain, "{cell}")
WORLD_TRANSFER = stage_folder(paths.world_transfer, "{cell}")


wildcard_constraints:
    cell="|".join(graph.cells()) or NOTHING,


rule world_pretrain:
    message: "pretraining in the controlled world: {wildcards.cell}"
    input:
        notebook="notebooks/world_pretrain.ipynb",
        phrasebook="params/phrasebook.yaml",
    output:
        manifest=f"{WORLD_PRETRAIN}/manifest.json",
        metrics=f"{WORLD_PRETRAIN}/metrics.json",
        notebook=f"{WORLD_PRETRAIN}/notebook.ipynb",
    params:
        parameters=lambda w: graph.world_parameters("pretrain", paths.world_pretrain(profile, w.cell), w.cell),
    log: f"{WORLD_PRETRAIN}/log.txt",
    resources:
        mem_mb=2000,
    shell: EXECUTE


rule world_transfer:
    message: "transfer in the controlled world: {wildcards.cell}"
    input:
        notebook="notebooks/world_transfer.ipynb",
        pretrained=f"{WORLD_PRETRAIN}/manifest.json",
        phrasebook="params/phrasebook.yaml",
    output:
        manifest=f"{WORLD_TRANSFER}/manifest.json",
        metrics=f"{WORLD_TRANSFER}/metrics.json",
        notebook=f"{WORLD_TRANSFER}/notebook.ipynb",
    params:
        parameters=lambda w: graph.world_parameters("transfer", paths.world_transfer(profile, w.cell), w.cell),
    log: f"{WORLD_TRANSFER}/log.txt",
    resources:
        mem_mb=2000,
    shell: EXECUTE
