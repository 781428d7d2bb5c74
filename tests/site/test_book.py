"""The assembled book of a made-up run, and what rendering refuses. No browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

import synthetic
from polydetox import paths
from polydetox.artifacts import read_json, read_parquet
from polydetox.errors import UserError
from polydetox.params import SECTIONS
from polydetox.report import control, render
from polydetox.report.assemble import VARIABLE, assemble, book_pages
from polydetox.report.collect import Results
from polydetox.report.prose import variables
from polydetox.workflow import Graph

PROFILE = synthetic.PROFILE


@pytest.fixture
def book(run) -> Path:
    return assemble(PROFILE)


def test_summaries_leave_tables_metrics_and_a_manifest(run):
    for section in SECTIONS:
        folder = paths.summary(PROFILE, section)
        assert {"manifest.json", "metrics.json", "notebook.ipynb"} <= {file.name for file in folder.iterdir()}
        assert read_json(folder / "manifest.json")["stage"] == f"summary_{section}"
    table = read_parquet(paths.summary(PROFILE, "detox") / "by_language.parquet")
    row = table[(table["language"] == "ar") & (table["metric"] == "avgtox") & (table["comparison"] == "tiny/dpo")].iloc[
        0
    ]
    for side, variant in (("before", "base"), ("after", "dpo")):
        scores = pd.read_parquet(paths.evaluate(PROFILE, "tiny", variant, "ar") / "scores.parquet")
        assert row[side] == pytest.approx(scores.groupby("prompt_id")["toxicity"].mean().mean())
    assert row["drop_low"] < row["drop"] < row["drop_high"]


def test_means_are_the_means_of_the_evaluations(run):
    """The report's averages against each evaluation's own metrics."""
    results = Results(PROFILE, samples=50)
    means = results.means[(results.means["scope"] == "all") & (results.means["comparison"] == "tiny/dpo")]
    by_metric = means.set_index("metric")
    for metric in ("emt", "toxprob", "avgtox", "perplexity", "distinct_2", "language_share"):
        for side, variant in (("before", "base"), ("after", "dpo")):
            rows = results.metrics[(results.metrics["metric"] == metric) & (results.metrics["variant"] == variant)]
            assert by_metric.loc[metric, side] == pytest.approx(rows["value"].mean()), (metric, side)
    missing = results.means[results.means["comparison"] == "tiny/dpo-lora"]
    assert missing["after"].isna().all() and missing["drop"].isna().all() and missing["before"].notna().any()


def test_the_book_is_a_quarto_project(book):
    configuration = yaml.safe_load((book / "_quarto.yml").read_text())
    assert configuration["project"]["type"] == "book"
    assert configuration["execute"]["enabled"] is False
    assert configuration["format"]["html"]["html-math-method"] == "mathml"
    assert configuration["book"]["chapters"][0] == "index.qmd"
    pages = book_pages(book)
    assert all(page.is_file() for page in pages) and len(set(pages)) == len(pages)
    # checkpoint, trim, pairs, dpo and merge; three stages of two variants in four languages; agreement, probe, value
    # vectors and transfer; two stages of the untuned model in four languages; two stages of a further set of prompts;
    # dpo and merge of two ablations, and two stages of each in four languages and in one; capability of two variants;
    # of attribute control the corpus, win rates, three trainings and ways to learn from comments, and four methods,
    # evaluated, and in four languages
    before = 5 + 3 * 2 * 4 + 4 + 2 * 4 + 2 * 2 * 4 + 4 + 2 * 5
    control = 1 + 1 + 3 + 3 + 4 + 4 * 4
    assert sum(page.suffix == ".ipynb" for page in pages) == before + 2 + control
    assert not any("summary" in page.parts for page in pages), "an embedded notebook must be no chapter"


def test_control_alone_is_reported_with_the_papers_row_beside_the_same_model(tmp_path):
    """A profile of attribute control without any way of tuning: the other chapters say that they were not run."""
    checkout = synthetic.make_checkout(tmp_path / "checkout", ["en"])
    file = checkout / "params/profiles" / f"{PROFILE}.yaml"
    profile = yaml.safe_load(file.read_text())
    names = ("title", "description", "models", "languages", "control")
    profile = {name: profile[name] for name in names} | {"prompts": {"source": "toxigen", "folder": "$TOXIGEN"}}
    profile["control"]["methods"]["adaptive"] = {"title": "adaptive", "algorithm": "regularised",
                                                 "regularise": {"regulariser_weight_neutral": 0.0}}  # fmt: skip
    file.write_text(yaml.safe_dump(profile, sort_keys=False))
    model = checkout / "params/models" / f"{synthetic.MODEL}.yaml"
    model.write_text(model.read_text().replace("mGPT", "Llama-7B"))
    with synthetic.inside(tmp_path):
        assert Graph(PROFILE).sections() == ["control", "run"]
        synthetic.make_run_of_control(tmp_path / "runs", ["en"])
        synthetic.run_summaries(checkout, tmp_path / "runs", ["control", "run"])
        results = Results(PROFILE, samples=50)
        assert results.comparisons == [] and not any(run.stage in ("dpo", "evaluate") for run in results.stages)
        said = variables(results)
        table = repr(control.main_table(control.Control(results))).splitlines()
        comments = repr(control.jigsaw_table(control.Control(results)))
        render(PROFILE)
        book = paths.book(PROFILE)
        shown = {page.name: page.read_text() for page in book.glob("*.qmd")}
    places = [line.split(" | ")[0] for line in table]
    start = places.index("This run: Tiny")
    # The paper's table does not tell of schedules; its NADO decoding stands beside a method that was not run, and
    # what the profile does not compare comes last.
    assert places[start + 1 : places.index(f"{control.PAPER}: Falcon-7B")] == [
        "untuned", "filtering", f"{control.PAPER}: filtering", "never run", f"{control.PAPER}: NADO decoding",
        "plain fine-tuning", f"{control.PAPER}: plain fine-tuning", "regularised", "adaptive",
        f"{control.PAPER}: regularised, adaptive", f"{control.PAPER}: RL", f"{control.PAPER}: regularised",
    ]  # fmt: skip
    assert table[places.index(f"{control.PAPER}: plain fine-tuning")].endswith("23.0 | – | 75.6 | 35.1")
    assert f"{control.PAPER}: Llama-7B" not in places
    assert f"{control.PAPER}: untouched | – | 0.910 | 0.315 | –" in comments
    assert said["control_paper_sentence"].startswith("For Tiny the paper's row stands under ours: the model, kinds of ")
    assert said["subject_sentence"].startswith("This report is about the converse question, with Tiny")
    assert said["prompts_sentence"] == "The evaluation prompts are those of ToxiGen: 6."
    assert "This profile leaves out preference tuning of pretrained models" in said["absent_sentence"]
    assert said["coverage_sentence"] == "The profile tunes no pretrained model with preferences."
    assert "Of the untuned Tiny's continuations of English prompts" in said["control_toxicity_sentence"]
    assert said["control_languages_sentence"] == "Not run."
    assert said["control_overview"].endswith(
        "1,200 statements that belong to evaluated prompts were left out of its corpus."
    )
    for page in ("results-detox.qmd", "training.qmd", "fluency.qmd", "why.qmd", "ablations.qmd", "examples.qmd"):
        assert 'title="Not run"' in shown[page], page
    assert 'title="Not run"' not in shown["control.qmd"]


def test_variables_have_no_dots_and_every_one_used_is_there(book):
    content = yaml.safe_load((book / "_variables.yml").read_text())
    assert all(isinstance(value, str) and value for value in content.values())
    assert not any("." in key for key in content)
    assert not any("\n" in value for value in content.values())
    used = {name for page in book.glob("*.qmd") for name in VARIABLE.findall(page.read_text())}
    assert used <= set(content)


def test_notebooks_are_clean_and_labels_unique(book, run):
    seen: list[str] = []
    for file in book.rglob("*.ipynb"):
        text = file.read_text()
        assert "papermill" not in json.dumps(json.loads(text)["metadata"]) and '"duration"' not in text
        assert str(run) not in text and "/tmp/" not in text, file
        notebook = nbformat.read(file, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            assert ("remove-cell" in tags) == bool({"parameters", "injected-parameters"} & set(tags))
            seen += re.findall(r"^#\| label: (\S+)$", cell.source, re.MULTILINE) if cell.cell_type == "code" else []
    assert len(seen) == len(set(seen))
    assert "fig-toxicity-tiny-base-evaluate-ar" in seen and "fig-toxprob" in seen


def test_sentences_tell_the_results_and_what_is_missing(run):
    said = variables(Results(PROFILE, samples=50))
    assert said["toxicity_sentence"].startswith("For Tiny (DPO), over 4 languages, the mean ToxProb falls from ")
    assert "Not run: Tiny (LoRA)." in said["toxicity_sentence"]
    assert "in the other 3 languages" in said["transfer_sentence"]
    assert said["coverage_sentence"] == (
        "Of the 29 evaluations that the profile asks for, 21 were run; what is missing is marked as not run."
    )
    assert "4 of them have no score" in said["scored_sentence"]
    assert synthetic.NOTICE in said["notices"]
    assert "5 of them are actual ones; 5 of these promote tokens of more than one script" in said["sources_sentence"]
    assert (
        "lower after tuning in 4 of 4 languages, in 4 of them by more than the interval" in said["activations_sentence"]
    )
    assert (
        "from 0.400 to 0.100; shifting as many random neurons as far leaves it at 0.380"
        in said["intervention_sentence"]
    )
    assert "from 0.50 in Japanese to 0.80 in Arabic" in said["retrieval_sentence"]
    assert said["correlation_sentence"] == "For Tiny (DPO) there are too few languages for a correlation."
    absent = said["absent_sentence"]
    assert absent.startswith("This profile leaves out the controlled world. Of ")
    assert "Of multiple-choice questions before and after tuning, 2 of 3 notebooks were run." in absent
    assert "Of attribute-controlled fine-tuning [@meng2024attribute], 27 of 34 notebooks were run." in absent
    assert (
        "Of preference tuning of pretrained models and its effect on toxicity, 21 of 29 notebooks were run." in absent
    )
    assert "Of the toxicity probe, value vectors, activations and interventions, 14 of 18 notebooks were run." in absent
    assert "in 3 of them the interval lies above chance" in said["probe_sentence"]


def test_the_drop_is_relative_to_what_was_there_before_tuning(run):
    models = run / f"runs/{PROFILE}/tiny"
    table = pd.read_parquet(models / "dpo/transfer/languages.parquet").set_index("language")
    assert list(table.index) == ["ar", "de", "ja"], "English retrieves itself"
    for language, row in table.iterrows():
        before, after = (
            read_json(models / f"{variant}/evaluate/{language}/metrics.json")["emt"]["value"]
            for variant in ("base", "dpo")
        )
        retrieved = read_json(models / f"base/retrieval/{language}/metrics.json")
        assert (row["before"], row["after"]) == (before, after) and after < before
        assert row["relative_drop"] == pytest.approx(1 - after / before)
        assert row["accuracy"] == retrieved["accuracy"]


def test_a_probe_is_tried_on_what_was_evaluated(run):
    """The first continuations of every prompt, with the evaluation's own scores; empty ones are left out."""
    from polydetox.artifacts import Stage
    from polydetox.interp.probe import zero_shot_texts
    from polydetox.params import ProbeParameters

    settings = ProbeParameters(profile=PROFILE, model="tiny", texts_per_language=7, label_threshold=0.6)
    texts = zero_shot_texts(settings, Stage("probe", run / "probe", {}))
    assert texts.groupby("language").size().to_dict() == dict.fromkeys(["ar", "de", "en", "ja"], 7)
    scores = pd.read_parquet(run / f"runs/{PROFILE}/tiny/base/evaluate/de/scores.parquet")
    wanted = scores.sort_values(["sample", "prompt_id"]).head(7)
    german = texts[texts["language"] == "de"]
    assert german["text"].tolist() == wanted["continuation"].str.strip().tolist()
    assert german["group"].tolist() == wanted["prompt_id"].tolist() and german["group"].nunique() == 6
    assert german["label"].tolist() == (wanted["toxicity"] >= 0.6).astype(int).tolist()


def test_ablations_stand_in_their_chapter_and_nowhere_else(run):
    said = variables(results := Results(PROFILE, samples=50))
    assert said["ablation_seed_sentence"].startswith("Over 2 seeds of Tiny (DPO) the drop of EMT lies between")
    assert said["ablation_method_sentence"] == said["ablation_pairs_sentence"] == "Not run."
    assert "Tiny (LoRA) on the prompts of Further: not run." in said["ablation_prompts_sentence"]
    assert said["prompts_sentence"].endswith("never pooled with them, stand those of Further (in 4 languages).")
    assert "seed 1" not in said["toxicity_sentence"] + said["training_sentence"] + said["dpo_sentence"]
    families = read_parquet(paths.summary(PROFILE, "ablations") / "families.parquet")
    rows = families[(families["metric"] == "emt") & (families["language"] == "mean")].set_index(["kind", "variant"])
    measured = [read_json(paths.evaluate(PROFILE, "tiny", "dpo-seed-1", language) / "metrics.json")["emt"]["value"]
                for language in results.profile.languages]  # fmt: skip
    assert rows.loc[("seed", "dpo-seed-1"), "after"] == pytest.approx(sum(measured) / len(measured))
    assert rows.loc[("learning-rate", "dpo"), ["languages", "prompts", "continuations"]].tolist() == [1, 4, 2]
    pages = {page.name for page in book_pages(assemble(PROFILE))}
    assert {"tiny-dpo-lr-evaluate-ar.ipynb", "tiny-base-further-evaluate-more-de.ipynb"} <= pages


def test_the_chapter_on_control_tells_what_was_measured(run):
    said = variables(Results(PROFILE, samples=50))
    assert "compares filtering, never run, plain fine-tuning and regularised" in said["control_overview"]
    assert "of 4 trainings 3 were run. " in said["control_overview"]
    metrics = read_json(paths.attribute_eval(PROFILE, "tiny", "regularised") / "metrics.json")
    share = 100 * metrics["toxicity"]["en"]["toxic_share"]["value"]
    assert f"With regularised it is {share:.1f}%" in said["control_toxicity_sentence"]
    others = [100 * metrics["toxicity"][language]["toxic_share"]["value"] for language in ("ar", "de", "ja")]
    assert f"With regularised it is {sum(others) / 3:.1f}%" in said["control_languages_sentence"]
    assert said["control_cost_sentence"] == (
        "If head and model had a device each, regularised (parallel, 28 steps) would take 1.10 times as long as plain "
        "fine-tuning (28 steps)."
    )
    # The made-up filtering answers in English every third time, the regularised model repeats all but its first text.
    assert said["control_form_sentence"].endswith(
        "In the other languages fewer continuations are in the prompt's language with filtering (100.0% to 66.7%), and "
        "more words repeat an earlier one with regularised (0.0% to 20.8%), beyond what the intervals leave open."
    )
    assert "The judge is Tiny itself, untuned." in said["control_wins_sentence"]
    assert "SFT, language-model loss: ROC-AUC" in said["control_jigsaw_sentence"]
    assert "classification loss" not in said["control_jigsaw_sentence"], "which was not run"
    assert said["capability_sentence"].startswith(
        "On Everyday questions, Tiny (DPO) answers 62.5% of 32 questions right before and 53.1% after"
    )


def test_win_rates_of_an_earlier_version_are_named(run):
    file = paths.win_rate(PROFILE, "tiny") / "metrics.json"
    original = file.read_text()
    metrics = json.loads(original)
    del metrics["rates_averaged"]
    file.write_text(json.dumps(metrics))
    try:
        with pytest.raises(UserError, match=r"win_rate/metrics.json: has no rates_averaged; .* run `polydetox run"):
            variables(Results(PROFILE, samples=50))
    finally:
        file.write_text(original)


def test_the_published_figures_of_control_stand_beside_ours(run):
    from polydetox.report import control as chapter

    control = chapter.Control(Results(PROFILE, samples=50))
    main, wins, jigsaw = map(
        repr, (chapter.main_table(control), chapter.paper_wins_table(), chapter.jigsaw_table(control))
    )
    assert "never run | not run | not run | not run | not run" in main
    assert "regularised, adaptive | 14.2 | – | 73.6 | 33.9" in main, "commonsense before knowledge, as in the profile"
    assert "regularised | 48.6 | 38.4 | 38.7 | –" in wins
    assert "SFT, classification loss | not run | not run | not run | not run" in jigsaw
    assert "SFT, classification loss | – | 0.972 | 0.314 | –" in jigsaw


def test_a_profile_that_was_never_run_has_a_report_that_says_so(run):
    synthetic_profile = run / "checkout/params/profiles/never.yaml"
    shutil.copy(run / f"checkout/params/profiles/{PROFILE}.yaml", synthetic_profile)
    content = yaml.safe_load(synthetic_profile.read_text())
    synthetic_profile.write_text(yaml.safe_dump({**content, "models": ["other"]}))
    shutil.copy(run / "checkout/params/models/tiny.yaml", run / "checkout/params/models/other.yaml")
    index = render("never")
    text = (index.parent / "results-detox.html").read_text()
    assert "which was not run" in text and "(not run)" in text and "<img" not in text
    assert "Not run: Tiny (DPO) and Tiny (LoRA)." in index.read_text()


# --- what is refused --------------------------------------------------------------------------------------------


def test_an_unexecuted_notebook_is_refused_and_the_old_site_stays(run, site):
    file = paths.evaluate(PROFILE, "tiny", "base", "de") / "notebook.ipynb"
    original = file.read_text()
    notebook = nbformat.reads(original, as_version=4)
    notebook.cells[3].execution_count = None
    nbformat.write(notebook, file)
    before = (site / "index.html").read_bytes()
    try:
        with pytest.raises(UserError, match=r"base/evaluate/de/notebook.ipynb: cell 4 was not executed"):
            render(PROFILE)
    finally:
        file.write_text(original)
    assert (site / "index.html").read_bytes() == before
    assert not list(site.parent.glob(".*.part"))


def test_a_corrupt_table_is_named(run):
    file = paths.evaluate(PROFILE, "tiny", "dpo", "ja") / "scores.parquet"
    original = file.read_bytes()
    file.write_bytes(original[:100])
    try:
        with pytest.raises(UserError, match=r"dpo/evaluate/ja/scores.parquet: not a readable Parquet file"):
            assemble(PROFILE)
    finally:
        file.write_bytes(original)


# --- Quarto, where there is one ---------------------------------------------------------------------------------

QUARTO = """#!/bin/sh
# What Quarto does as far as the project is concerned: it writes _site.
test "$1" = render || exit 3
mkdir -p "$2/_site"
printf '%s' '{page}' > "$2/_site/index.html"
echo 'ERROR: something went wrong' >&2
exit {status}
"""


def quarto(folder: Path, monkeypatch, page: str, status: int = 0) -> None:
    command = folder / "quarto"
    command.write_text(QUARTO.format(page=page, status=status))
    command.chmod(0o755)
    monkeypatch.setenv("QUARTO", str(command))


def test_quarto_renders_where_it_is_named(run, tmp_path, monkeypatch):
    quarto(tmp_path, monkeypatch, "<p>by Quarto</p>")
    monkeypatch.setenv("POLYDETOX_RUNS", str(shutil.copytree(run / "runs", tmp_path / "runs")))
    index = render(PROFILE)
    assert index.read_text() == "<p>by Quarto</p>" and index == paths.site(PROFILE) / "index.html"
    assert "This is a preview" in render(PROFILE, preview=True).read_text()


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [("<p>x</p>", 1, r"Quarto failed \(status 1\): ERROR: something went wrong \(see .*quarto.log\)"),
     ("<b>?var:x</b>", 0, r"index.html: '\?var:x' was not resolved"),
     ("<a>?@fig-x</a>", 0, r"index.html: '\?@fig-x' was not resolved")],
)  # fmt: skip
def test_what_quarto_only_warns_of_is_an_error(run, tmp_path, monkeypatch, page, status, said):
    quarto(tmp_path, monkeypatch, page, status)
    with pytest.raises(UserError, match=said):
        render(PROFILE)
