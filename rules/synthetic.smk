# The synthetic multilingual setting: for every size, alignment and seed a small model is pretrained, tuned on English and
# measured.

run.chapter("synthetic", "the synthetic multilingual setting", section="world", included=bool(run.profile.world))
CONFIGURATIONS = run.profile.world.configurations() if run.profile.world else {}


wildcard_constraints:
    configuration=any_of(*CONFIGURATIONS),


WORLD_PRETRAIN = run.stage(
    "world_pretrain",
    f"{RUN}/world/{{configuration}}/pretrain",
    title="Pretraining in the synthetic setting",
    section="world: pretrain",
    jobs=each(configuration=CONFIGURATIONS),
    inputs=lambda configuration: {**CONFIGURATIONS[configuration], "languages": run.profile.languages},
)


rule world_pretrain:
    message: "pretraining in the synthetic setting: {wildcards.configuration}"
    input:
        notebook="notebooks/synthetic/world_pretrain.ipynb",
        phrasebook="params/phrasebook.yaml",
    output:
        manifest=f"{WORLD_PRETRAIN}/manifest.json",
        metrics=f"{WORLD_PRETRAIN}/metrics.json",
        notebook=f"{WORLD_PRETRAIN}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("world_pretrain", w),
    log: f"{WORLD_PRETRAIN}/log.txt",
    benchmark: f"{WORLD_PRETRAIN}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE


WORLD_TRANSFER = run.stage(
    "world_transfer",
    f"{RUN}/world/{{configuration}}/transfer",
    title="Transfer in the synthetic setting",
    section="world: transfer",
    jobs=each(configuration=CONFIGURATIONS),
    inputs=lambda configuration: {"pretrained": WORLD_PRETRAIN.format(configuration=configuration)},
    table="languages.parquet",
)


rule world_transfer:
    message: "transfer in the synthetic setting: {wildcards.configuration}"
    input:
        notebook="notebooks/synthetic/world_transfer.ipynb",
        pretrained=f"{WORLD_PRETRAIN}/manifest.json",
        phrasebook="params/phrasebook.yaml",
    output:
        manifest=f"{WORLD_TRANSFER}/manifest.json",
        metrics=f"{WORLD_TRANSFER}/metrics.json",
        notebook=f"{WORLD_TRANSFER}/notebook.ipynb",
    params:
        parameters=lambda w: run.parameters("world_transfer", w),
    log: f"{WORLD_TRANSFER}/log.txt",
    benchmark: f"{WORLD_TRANSFER}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE
