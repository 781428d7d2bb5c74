# The report: what the run is made of, as one file; a notebook of tables and figures for each section; the rendered site.
# {part} is empty for that. A profile with `first` has a site on these languages before, {part} is FIRST: the same of a
# part of the run, with the sections that exist by then; it is rendered again with each chapter that is done after it.
# The whole report neither reads nor waits for it.

TUNED_MODELS = [model for model in run.models if run.compared(model)[1:]]
# The sections, each made by the notebook summary_<section>.ipynb: whether a profile has something for it, and the
# chapters whose stages it reads; none: all of them.
SECTIONS = {
    "detox": (TUNED_MODELS, ["preference"]),
    "style": (TUNED_MODELS, ["preference"]),
    "scorers": (TUNED_MODELS, ["preference"]),
    "labels": (SHEETS, ["preference"]),
    "training": (TUNED_MODELS, ["preference"]),
    "fluency": (TUNED_MODELS, ["preference"]),
    "ablations": (TUNED_MODELS, ["preference"]),
    "examples": (TUNED_MODELS, ["preference"]),
    "mechanism": (TUNED_MODELS, ["preference", "mechanism"]),
    "transfer": (TUNED_MODELS, ["preference", "transfer"]),
    "world": (run.profile.world, ["synthetic"]),
    "capability": (TUNED_MODELS, ["preference", "benchmarks"]),
    "control": (TUNED_MODELS or run.profile.control, ["preference", "attribute_control"]),
    "run": (True, []),
}
SUMMARIES = [section for section, (wanted, _) in SECTIONS.items() if wanted]
RECORD = f"{RUN}/{{part}}run.json"
FIDELITY = ["book/reference/fidelity.yaml", "book/reference/fidelity_effects.csv", "CITATION.cff"]
SUMMARY = f"{RUN}/{{part}}summary/{{section}}"
SITE = f"{RUN}/{{part}}site/index.html"
SITES = [SITE.format(part="")]  # the whole, and below what there is of the early one
BOOK = [local(path) for path in sorted((paths.root() / "book").rglob("*")) if path.is_file()]

# The early site: its jobs, its sections, and those of the whole report that it shows once they are there.
EARLY = {job.folder for job in run.reported(FIRST)}
EARLY_SECTIONS = ["first", "detox", "style", "training", "fluency", "examples", "run"]
ASKED = {
    "scorers": run.profile.agreement is not None,
    "labels": SHEETS,
    "ablations": len(run.profile.variants) > 1,
    "mechanism": run.profile.mechanism,
    "transfer": run.profile.alignment,
    "world": run.profile.world,
    "capability": run.profile.capability is not None,
    "control": run.profile.control,
}
LATER = [section for section in SUMMARIES if ASKED.get(section)]
WHOLE = {section: SUMMARY.format(part="", section=section) for section in SUMMARIES}
run.sections[""] = WHOLE
run.sections[FIRST] = {section: SUMMARY.format(part=FIRST, section=section) for section in EARLY_SECTIONS}
run.sections[FIRST] |= {section: WHOLE[section] for section in LATER}


localrules:
    record,
    summary,
    render,


# Written again whenever a rule, a profile or a model file says something else.
rule record:
    output:
        RECORD,
    params:
        record=lambda w: run.record(w.part),  # a function, since a path may hold braces, which are no wildcards
    run:
        from polydetox.core.artifacts import atomic_path

        with atomic_path(Path(output[0])) as file:
            file.write_text(params.record + "\n", "utf-8")


rule summary:
    message: "section of the report: {wildcards.part}{wildcards.section}"
    input:
        notebook=lambda w: local(notebook_file(f"summary_{w.section}")),
        run=lambda w: RECORD.format(part="" if w.section == "first" else w.part),  # it says what else there will be
        results=lambda w: run.manifests(w.part, *([] if w.part else SECTIONS[w.section][1])),
        fidelity=lambda w: FIDELITY if w.section == "run" else [],
    output:
        manifest=f"{SUMMARY}/manifest.json",
        notebook=f"{SUMMARY}/notebook.ipynb",
    params:
        parameters=lambda w, input: json.dumps(
            {"run": input.run, "output_folder": SUMMARY.format(part=w.part, section=w.section)}
        ),
    wildcard_constraints:
        section=any_of("first", *SUMMARIES),
    log: f"{SUMMARY}/log.txt",
    benchmark: f"{SUMMARY}/benchmark.tsv"
    priority: lambda w: 9 if w.part else 0
    resources:
        mem_mb=2000,
    shell: EXECUTE


rule render:
    message: "render the report"
    input:
        run=RECORD.format(part=""),
        summaries=[SUMMARY.format(part="", section=section) + "/manifest.json" for section in SUMMARIES],
        results=run.manifests(),
        book=BOOK,
        project="_quarto.yml",
    output:
        index=SITE.format(part=""),
    params:
        first="",
    log: f"{RUN}/logs/render.txt",
    resources:
        mem_mb=2000,
    shell:
        "{sys.executable:q} -m polydetox render --profile={profile:q} {params.first} > {log:q} 2>&1"


if EARLY:

    localrules:
        render_first,
        render_again,

    EARLY_SITE = str(paths.root() / SITE.format(part=FIRST)).replace("{", "{{").replace("}", "}}")  # as text of a message

    use rule render as render_first with:
        message: f"the report on {' '.join(run.profile.first)}, to read while the rest runs: {EARLY_SITE}"
        input:
            run=RECORD.format(part=FIRST),
            summaries=[SUMMARY.format(part=FIRST, section=section) + "/manifest.json" for section in EARLY_SECTIONS],
            book=BOOK,
            project="_quarto.yml",
        output:
            index=SITE.format(part=FIRST),
        params:
            first="--first",
        log: f"{RUN}/{FIRST}logs/render.txt",
        priority: 9


    # Once a chapter is done. Its first page is no input: each of these jobs writes it again.
    CHAPTERS = {
        chapter: sections
        for chapter in run.chapters
        if (sections := [section for section in LATER if SECTIONS[section][1][-1] == chapter])
    }
    AGAIN = f"{RUN}/{FIRST}chapters/{{chapter}}"
    SITES += [SITE.format(part=FIRST), *(AGAIN.format(chapter=chapter) for chapter in CHAPTERS)]

    use rule render_first as render_again with:
        message: "the report on the first languages, with the chapter {wildcards.chapter}"
        input:
            first=ancient(SITE.format(part=FIRST)),
            summaries=lambda w: [WHOLE[section] + "/manifest.json" for section in CHAPTERS[w.chapter]],
        output:
            touch(AGAIN),
        log: f"{RUN}/{FIRST}logs/render-{{chapter}}.txt",
