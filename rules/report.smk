# The report: what the run is made of, as one file; a notebook of tables and figures for each section; the rendered site.

TUNED_MODELS = [model for model in run.models if run.compared(model)[1:]]
# The sections that a profile has something for; each is made by the notebook summary_<section>.ipynb.
SECTIONS = {
    "detox": TUNED_MODELS,
    "style": TUNED_MODELS,
    "scorers": TUNED_MODELS,
    "labels": SHEETS,
    "training": TUNED_MODELS,
    "fluency": TUNED_MODELS,
    "ablations": TUNED_MODELS,
    "examples": TUNED_MODELS,
    "mechanism": TUNED_MODELS,
    "transfer": TUNED_MODELS,
    "world": run.profile.world,
    "capability": TUNED_MODELS,
    "control": TUNED_MODELS or run.profile.control,
    "run": True,
}
SUMMARIES = [section for section, wanted in SECTIONS.items() if wanted]
RECORD = f"{RUN}/run.json"
FIDELITY = ["book/reference/fidelity.yaml", "book/reference/fidelity_effects.csv", "CITATION.cff"]
SUMMARY = f"{RUN}/summary/{{section}}"
run.sections = {section: SUMMARY.format(section=section) for section in SUMMARIES}


localrules:
    record,
    summary,
    render,


# Written again whenever a rule, a profile or a model file says something else.
rule record:
    output:
        RECORD,
    params:
        record=lambda w: run.record(),  # a function, since a path may hold braces, which are no wildcards
    run:
        from polydetox.core.artifacts import atomic_path

        with atomic_path(Path(output[0])) as file:
            file.write_text(params.record + "\n", "utf-8")


rule summary:
    message: "section of the report: {wildcards.section}"
    input:
        notebook=lambda w: local(notebook_file(f"summary_{w.section}")),
        run=RECORD,
        results=run.manifests(),
        fidelity=lambda w: FIDELITY if w.section == "run" else [],
    output:
        manifest=f"{SUMMARY}/manifest.json",
        notebook=f"{SUMMARY}/notebook.ipynb",
    params:
        parameters=lambda w: json.dumps({"run": RECORD, "output_folder": SUMMARY.format(section=w.section)}),
    wildcard_constraints:
        section=any_of(*SUMMARIES),
    log: f"{SUMMARY}/log.txt",
    benchmark: f"{SUMMARY}/benchmark.tsv"
    resources:
        mem_mb=2000,
    shell: EXECUTE


rule render:
    message: "render the report"
    input:
        run=RECORD,
        summaries=[SUMMARY.format(section=section) + "/manifest.json" for section in SUMMARIES],
        results=run.manifests(),
        book=[local(path) for path in sorted((paths.root() / "book").rglob("*")) if path.is_file()],
        project="_quarto.yml",
    output:
        index=f"{RUN}/site/index.html",
    log: f"{RUN}/logs/render.txt",
    resources:
        mem_mb=2000,
    shell:
        "{sys.executable:q} -m polydetox render --profile={profile:q} > {log:q} 2>&1"
