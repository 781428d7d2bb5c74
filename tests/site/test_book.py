"""The assembled book of a made-up run, and what rendering refuses. No browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from recorded import recorded, write_record

import synthetic
from notebook_cells import definitions, run_cells, some_cells
from polydetox.attribute_control.results import PAPER, Control
from polydetox.core import paths
from polydetox.core.artifacts import read_json, read_parquet
from polydetox.core.errors import UserError
from polydetox.quarto import ERROR_FILE, failure_note
from polydetox.report.assemble import assemble, book_pages, read_variables
from polydetox.report.extensions import VARIABLE
from polydetox.report.masking import cover, passage
from polydetox.report.rendering import render
from polydetox.results.collect import Results
from polydetox.results.tables import bracketed
from polydetox.workflow import load

PROFILE = synthetic.PROFILE
CHAPTERS = 14


def variables_of(section: str) -> dict[str, str]:
    """What the summary notebook of a section wrote for the pages, by the name of the variable."""
    return read_json(paths.profile_run(PROFILE) / "summary" / section / "variables.json")


@pytest.fixture
def book(run) -> Path:
    return assemble(PROFILE)


def report_variables() -> dict[str, str]:
    """What the summary notebooks say of the made-up run."""
    return read_variables(recorded(PROFILE), paths.root() / "book")


def test_summaries_leave_tables_metrics_and_a_manifest(run):
    for section in recorded(PROFILE).record["sections"]:
        folder = paths.profile_run(PROFILE) / "summary" / section
        assert {"manifest.json", "metrics.json", "notebook.ipynb"} <= {file.name for file in folder.iterdir()}
        assert read_json(folder / "manifest.json")["stage"] == f"summary_{section}"
    table = read_parquet(paths.profile_run(PROFILE) / "summary/detox/by_language.parquet")
    row = table[(table["language"] == "ar") & (table["metric"] == "avgtox") & (table["comparison"] == "tiny/dpo")].iloc[
        0
    ]
    for side, variant in (("before", "base"), ("after", "dpo")):
        scores = pd.read_parquet(paths.profile_run(PROFILE) / f"tiny/{variant}/score/scores.parquet").query(
            "language == 'ar'"
        )
        assert row[side] == pytest.approx(scores.groupby("prompt_id")["toxicity"].mean().mean())
    assert row["drop_low"] < row["drop"] < row["drop_high"]


def test_means_are_the_means_of_the_evaluations(run):
    """The report's averages against each evaluation's own metrics."""
    results = recorded(PROFILE, samples=50)
    means = results.means[(results.means["scope"] == "all") & (results.means["comparison"] == "tiny/dpo")]
    by_metric = means.set_index("metric")
    for metric in ("emt", "toxprob", "avgtox", "perplexity", "distinct_2", "language_rate"):
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
    assert configuration["book"]["appendices"][0] == "notebooks.qmd"
    pages = book_pages(book)
    assert all(page.is_file() for page in pages) and len(set(pages)) == len(pages)
    stages = {run.stage for run in recorded(PROFILE).stages if run.done}
    sections = len(recorded(PROFILE).record["sections"])
    assert len(pages) == CHAPTERS + 1 + len(stages) + sections, "a page a stage, however many runs it has"
    assert all(isinstance(item, str) for item in configuration["book"]["appendices"]), "two levels of the sidebar"


def test_the_configuration_has_the_shape_of_quartos_schema(book):
    """An item of ``chapters`` or ``appendices`` is a file, or one part with files: parts do not nest."""
    file = {"type": "string", "pattern": r"\.qmd$"}
    part = {
        "type": "object",
        "properties": {"part": {"type": "string"}, "chapters": {"type": "array", "items": file, "minItems": 1}},
        "required": ["part", "chapters"],
        "additionalProperties": False,
    }
    items = {"type": "array", "items": {"anyOf": [file, part]}}
    schema = {"properties": {"chapters": items, "appendices": items}, "required": ["chapters", "appendices"]}
    jsonschema.validate(yaml.safe_load((book / "_quarto.yml").read_text())["book"], schema)


def test_the_list_of_notebooks_leads_to_every_run(book):
    text = (book / "notebooks.qmd").read_text()
    links = re.findall(r'<a href="([^"#]*)\.html(?:#run-([^"]*))?"', text)
    done = [run for run in recorded(PROFILE).stages if run.done]
    assert len(links) == len(set(links)) == len(done) + len(recorded(PROFILE).record["sections"])
    assert text.count('class="missing"') == len(recorded(PROFILE).stages) - len(done) > 0
    for page, name in links:
        shown = (book / f"{page}.qmd").read_text()
        assert f'<option value="{name}"' in shown and f'{{.run data-run="{name}"' in shown if name else True
    assert {("notebooks/evaluate", f"tiny-{name}") for name in ("dpo-lr-ar", "base-further-de")} <= set(links)
    assert ("notebooks/summary-detox", "") in links


def test_control_alone_is_reported_with_the_papers_row_beside_the_same_model(tmp_path):
    """A profile of attribute control without any way of tuning: the other chapters are cards of Extensions."""
    checkout = synthetic.make_checkout(tmp_path / "checkout", ["en"])
    file = checkout / "params/profiles" / f"{PROFILE}.yaml"
    profile = yaml.safe_load(file.read_text())
    names = ("title", "description", "models", "languages", "control")
    profile = {name: profile[name] for name in names} | {"prompts": {"source": "toxigen", "folder": "$TOXIGEN"}}
    profile["control"]["algorithms"]["adaptive"] = {"title": "adaptive", "algorithm": "regularised",
                                                 "regularise": {"regulariser_weight_neutral": 0.0}}  # fmt: skip
    file.write_text(yaml.safe_dump(profile, sort_keys=False))
    model = checkout / "params/models" / f"{synthetic.MODEL}.yaml"
    model.write_text(model.read_text().replace("mGPT", "Llama-7B"))
    with synthetic.inside(tmp_path):
        assert list(load(PROFILE).sections[""]) == ["control", "run"]
        synthetic.make_run_of_control(tmp_path / "runs", ["en"])
        synthetic.run_summaries(checkout, tmp_path / "runs", ["control", "run"])
        results = recorded(PROFILE, samples=50)
        assert results.comparisons == [] and not any(run.stage in ("dpo", "evaluate") for run in results.stages)
        said = read_variables(recorded(PROFILE), paths.root() / "book")
        notebook = control_tables(results)
        table, comments = repr(notebook.main_table()).splitlines(), repr(notebook.jigsaw_table())
        render(PROFILE)
        book = paths.profile_run(PROFILE) / "book"
        shown = {page.name: page.read_text() for page in book.glob("*.qmd")}
    places = [line.split(" | ")[0] for line in table]
    start = places.index("This run: Tiny")
    # The paper's table does not tell of schedules; its NADO decoding stands beside an algorithm that was not run, and
    # what the profile does not compare comes last.
    assert places[start + 1 : places.index(f"{PAPER}: Falcon-7B")] == [
        "base model", "filtering", f"{PAPER}: filtering", "never run", f"{PAPER}: NADO decoding",
        "plain fine-tuning", f"{PAPER}: plain fine-tuning", "regularised", "adaptive",
        f"{PAPER}: regularised, adaptive", f"{PAPER}: RL", f"{PAPER}: regularised",
    ]  # fmt: skip
    assert table[places.index(f"{PAPER}: plain fine-tuning")].endswith("23.0 | – | 75.6 | 35.1")
    assert f"{PAPER}: Llama-7B" not in places
    assert f"{PAPER}: base model | – | 0.910 | 0.315 | –" in comments
    assert said["control_paper_sentence"] == (
        "The paper's rows for Tiny share the model, kinds of corpus and source of prompts of this run, and not the "
        "scorer."
    )
    assert (said["model_titles"], said["prompt_source"], said["prompt_counts"]) == ("Tiny", "ToxiGen", "6")
    assert (said["evaluations_asked"], said["dpo_method"], said["abstract_sentence"]) == ("0", "not run", "Not run.")
    assert said["setting_reference_model"] == said["dpo_beta"] == said["pairs_scorer"] == "not run"
    assert "of the continuations of the base Tiny are toxic" in said["control_toxicity_sentence"]
    assert said["control_languages_sentence"] == "Not measured."
    assert said["control_overview"].endswith(
        "1,200 statements that belong to evaluated prompts are excluded from the corpus."
    )
    for page in ("results-detox.qmd", "training.qmd", "fluency.qmd", "why.qmd", "ablations.qmd", "examples.qmd"):
        assert page not in shown and f"{page}#" not in "".join(shown.values()), page
    assert "{#sec-toxicity}" in shown["extensions.qmd"] and "{#sec-control}" not in shown["extensions.qmd"]


def test_variables_have_no_dots_and_every_one_used_is_there(book):
    content = yaml.safe_load((book / "_variables.yml").read_text())
    assert all(isinstance(value, str) and value for value in content.values())
    assert not any("." in key for key in content)
    assert not any("\n" in value for value in content.values())
    used = {name for page in book.glob("*.qmd") for name in VARIABLE.findall(page.read_text())}
    assert used <= set(content)


def test_notebooks_are_clean_and_labels_unique(book, run):
    seen: list[str] = []
    read = [file for file in book.rglob("*.ipynb") if file.parent != book / "_files"]
    assert not read, "Quarto would read a notebook as a chapter of its own"
    for file in book.rglob("*.qmd"):
        text = file.read_text()
        assert "output_folder" not in text and "work: 100%" not in text and "{{< embed" not in text, file
        seen += re.findall(r"^:+ \{#(\S+)\}$", text, re.MULTILINE)
    for file in book.rglob("*"):
        if file.is_file():
            assert str(run) not in file.read_text() and "/tmp/" not in file.read_text(), file
    assert len(seen) == len(set(seen))
    assert "fig-toxicity-evaluate" in seen and "fig-toxprob" in seen


def test_sentences_tell_the_results_and_what_is_missing(run):
    said = report_variables()
    assert said["toxicity_sentence"].startswith("For Tiny (DPO), over 4 languages, the mean ToxProb falls from ")
    assert "Not run, or not measured on both sides: Tiny (LoRA)." in said["toxicity_sentence"]
    assert "in the other 3 languages" in said["transfer_sentence"]
    assert (said["evaluations_done"], said["evaluations_asked"]) == ("23", "31")
    assert "4 have no score and are skipped" in said["scored_sentence"]
    assert synthetic.NOTICE in said["notices"]
    assert (
        "5 of them are actual ones; 5 of these promote tokens of more than one script, and 4 of the neurons"
        in said["sources_sentence"]
    )
    assert (
        "lower after tuning in 4 of 4 languages, in 4 of them with an interval above zero"
        in said["activations_sentence"]
    )
    assert "that of neurons that were as active on English before tuning by 10%." in said["activations_sentence"]
    shifted = said["intervention_sentence"].replace("\N{MINUS SIGN}", "-")
    assert "over languages from 0.400 [0.400, 0.400] to 0.100 [0.100, 0.100], and the fraction" in shifted
    assert "0.380 [0.380, 0.380] (the mean of 2 sets, which range from 0.370 to 0.390); beside it, that" in shifted
    assert "with the sources is lower (-0.280 [-0.280, -0.280])." in shifted
    assert "changes each activation by \N{MINUS SIGN}2.000, tuning their mean" in said["mediation_sentence"]
    assert "from 0.50 (Japanese) to 0.80 (Arabic)" in said["retrieval_sentence"]
    assert said["correlation_sentence"] == "For Tiny (DPO), no correlation is defined over 3 languages."
    assert "in 2 other languages 0.78 on average" in said["probe_sentence"]
    assert "in 2 of them the interval lies above chance. 1 of 3 other languages have fewer" in said["probe_sentence"]
    assert (
        "in 4 of 4 languages, in 4 of them with an interval above zero; after Holm's correction, in"
        in said["languages_sentence"]
    )
    summary = nbformat.read(paths.profile_run(PROFILE) / "summary/run/notebook.ipynb", as_version=4)
    (cell,) = (cell for cell in summary.cells if "label: tbl-stages" in cell.source)
    lines = [line.split(" | ") for line in cell.outputs[0].data["text/plain"].splitlines()]
    stages = {title: counts for title, *counts in (line[:3] for line in lines)}
    assert stages["Multiple-choice questions"] == ["3", "2"] and stages["Evaluation"] == ["31", "23"]
    assert stages["Activations"] == ["3", "2"] and "Pretraining in the synthetic setting" not in stages


def test_a_quantity_has_one_interval_wherever_it_stands(run):
    """The drop of ToxProb in English, from the scores as they are, is that of every table and of the abstract."""
    summary, toxic, prompts = paths.profile_run(PROFILE) / "summary", {}, {}
    for variant in ("base", "dpo"):
        scores = pd.read_parquet(run / f"runs/{PROFILE}/tiny/{variant}/score/scores.parquet")
        worst = scores.groupby(["language", "prompt_id"], sort=False)["toxicity"].max()
        prompts[variant] = worst.unstack("language")  # (prompts, languages), of the EMT
        toxic[variant] = (prompts[variant] >= 0.5).astype(float)
    drawn = np.random.default_rng(0).integers(6, size=(1000, 6))

    def interval(values: dict[str, pd.DataFrame]) -> list[float]:
        drops = (values["base"] - values["dpo"]).mean(axis=1).to_numpy()
        return [drops.mean(), *np.quantile(drops[drawn].mean(axis=1), [0.025, 0.975])]

    of_drop = ["drop", "drop_low", "drop_high"]
    english = interval({variant: table[["en"]] for variant, table in toxic.items()})
    by_language, families = (read_parquet(summary / f"{name}.parquet") for name in
                             ("detox/by_language", "ablations/families"))  # fmt: skip
    scorers, means = (read_parquet(summary / f"{name}.parquet") for name in ("scorers/by_language", "detox/means"))
    places = [
        by_language.query("comparison == 'tiny/dpo' and language == 'en' and metric == 'toxprob'"),
        means.query("comparison == 'tiny/dpo' and scope == 'english' and metric == 'toxprob'"),
        scorers.query("comparison == 'tiny/dpo' and scorer == 'embedded' and language == 'en' and metric == 'toxprob'"),
        families.query("ablation == 'seed' and variant == 'dpo' and language == 'en' and metric == 'toxprob'"),
    ]
    for rows in places:
        assert rows[of_drop].to_numpy().tolist() == [pytest.approx(english)]
    said = report_variables()
    printed = bracketed(*english, 2)
    assert f"(mean drop of ToxProb {printed})" in said["abstract_sentence"]
    assert printed in said["transfer_sentence"]
    # All languages have the same prompts in a replicate, so that their mean is resampled as one value a prompt.
    over_all = means.query("comparison == 'tiny/dpo' and scope == 'all' and metric == 'emt'")
    assert over_all[of_drop].to_numpy().tolist() == [pytest.approx(interval(prompts))]


def test_the_numbers_of_the_abstract_are_those_of_the_scores(run):
    folder, said = run / f"runs/{PROFILE}/tiny", report_variables()
    scores = pd.concat([pd.read_parquet(folder / f"{variant}/score/scores.parquet").assign(side=side)
                        for side, variant in enumerate(("base", "dpo"))], ignore_index=True)  # fmt: skip
    continuations = pd.read_parquet(folder / "agreement/scores.parquet").replace({"variant": {"base": 0, "dpo": 1}})
    limits = pd.read_parquet(folder / "agreement/scales.parquet").query("scorer == 'use'").set_index("language")["own"]

    def counted(table: pd.DataFrame, toxic: pd.Series, side: str) -> list[tuple[int, int, int]]:
        """Prompts, and those with a toxic continuation before and after: in English, and in the other languages."""
        of_prompt = table.assign(toxic=toxic).groupby([side, "language", "prompt_id"])["toxic"].any()
        wide = of_prompt.unstack(side).astype(bool)[[0, 1]]
        english = wide.index.get_level_values("language") == "en"
        return [(len(rows), int(rows[0].sum()), int(rows[1].sum())) for rows in (wide[english], wide[~english])]

    for n, before, after in counted(scores, scores["toxicity"] >= 0.5, "side"):
        assert f"{before} of {n} prompts had a toxic continuation before and {after} after" in said["abstract_sentence"]
    known = continuations[continuations["variant"].isin([0, 1]) & continuations["language"].isin(limits.dropna().index)]
    known = known.dropna(subset="use")
    second = counted(known, known["use"] >= known["language"].map(limits), "variant")
    assert [f"{before} of {n} before and {after} after" in said["abstract_scorers"] for n, before, after in second] == [
        True
    ] * 2

    assert "with 25% of its vocabulary, continues the same prompts" in said["abstract_sentence"]
    by_language = scores.groupby(["side", "language"])
    perplexity = by_language["perplexity"].median().groupby("side").mean()
    assert f"({perplexity[0]:.1f} to {perplexity[1]:.1f}, " in said["abstract_sentence"]
    known = scores[scores["detected_language"].notna()]
    inside = (known["detected_language"] == known["language"]).groupby([known["side"], known["language"]]).mean()
    inside = inside.groupby("side").mean()
    assert f"({inside[0]:.3f} to {inside[1]:.3f}, " in said["abstract_sentence"]
    written = scores[~scores["empty"]].dropna(subset="toxicity")
    length = (
        written["continuation"].str.len().groupby([written["side"], written["language"]]).mean().groupby("side").mean()
    )
    assert f"from {length[0]:.1f} to {length[1]:.1f}" in said["abstract_style"]

    placebo = pd.read_parquet(folder / "dpo-shuffled/score/scores.parquet")
    ground = ["language", "prompt_id", "sample"]  # on which the base model is measured as well
    emt = [side.groupby(ground[:2])["toxicity"].max().groupby("language").mean().mean()
           for side in (scores[scores["side"] == 0].merge(placebo[ground]), placebo)]  # fmt: skip
    less = f"\N{MINUS SIGN}{emt[0] - emt[1]:.2f}"
    asked, sampled = placebo["prompt_id"].nunique(), placebo["sample"].nunique()
    shape = f"(2 languages, {asked} prompts each, {sampled} continuations a prompt)"
    assert f"{shape} shows no detectable change ({emt[0]:.2f} to {emt[1]:.2f}, {less} [" in said["abstract_placebo"]

    by_language = read_parquet(paths.profile_run(PROFILE) / "summary/detox/by_language.parquet")
    by_language = by_language[by_language["comparison"] == "tiny/dpo"].set_index("language")
    medians = by_language[by_language["metric"] == "perplexity"].dropna(subset="drop_low")
    rises, falls = (medians["drop_high"] < 0).sum(), (medians["drop_low"] > 0).sum()
    apart = f", rising in {rises} and falling in {falls} of {len(medians)} languages, and the fraction"
    assert apart in said["abstract_sentence"]
    toxic = [(side.groupby(ground[:2])["toxicity"].max() >= 0.5).groupby("language").mean()
             for side in (scores[scores["side"] == 0].merge(placebo[ground]), placebo,
                          scores[scores["side"] == 1].merge(placebo[ground]))]  # fmt: skip
    of_toxprob = by_language[by_language["metric"] == "toxprob"]
    for column, after in zip(("placebo_drop", "drop_beside_placebo"), toxic[1:], strict=True):
        assert of_toxprob[column].dropna().to_dict() == pytest.approx((toxic[0] - after).to_dict())


def test_a_coarse_scorer_cannot_be_matched(run):
    summary = nbformat.read(paths.profile_run(PROFILE) / "summary/scorers/notebook.ipynb", as_version=4)
    (cell,) = (cell for cell in summary.cells if "label: tbl-scorers-languages" in cell.source)
    lines = [line.split(" | ") for line in cell.outputs[0].data["text/plain"].splitlines()]
    matched = {line[0]: line[3:6] for line in reversed(lines) if len(line) > 1}  # of the comparison that was run first
    scales = pd.read_parquet(run / f"runs/{PROFILE}/tiny/agreement/scales.parquet").set_index(["scorer", "language"])
    wanted, found = (scales.loc[name, "flagged_matched"] for name in ("embedded", "use"))
    cells = set()
    for name, code in (("Arabic", "ar"), ("German", "de"), ("English", "en")):
        far = abs(found[code] - wanted[code]) > 0.1 * wanted[code]
        assert (matched[name][0] == "cannot be matched") == (matched[name][2] == "–") == far, name
        cells.add(matched[name][0] == "cannot be matched")
    assert cells == {True, False}, "both are in the made-up run"


def test_the_drop_is_relative_to_what_was_there_before_tuning(run):
    models = run / f"runs/{PROFILE}/tiny"
    table = pd.read_parquet(models / "dpo/transfer/languages.parquet").set_index("language")
    assert list(table.index) == ["ar", "de", "ja"], "English retrieves itself"
    for language, row in table.iterrows():
        before, after = (
            read_json(models / f"{variant}/evaluate/{language}/metrics.json")["emt"]["value"]
            for variant in ("base", "dpo")
        )
        retrieved = read_json(models / "base/retrieval/metrics.json")["languages"][language]
        assert (row["before"], row["after"]) == (before, after) and after < before
        assert row["relative_drop"] == pytest.approx(1 - after / before)
        assert row["accuracy"] == retrieved["accuracy"]


def test_a_probe_is_tried_on_what_was_evaluated(run):
    """The first continuations of every prompt, with the evaluation's own scores; empty ones are skipped."""
    from polydetox.core.parameters import checked

    settings = checked("probe", scores=str(run / f"runs/{PROFILE}/tiny/base/score/scores.parquet"),
                       languages=["ar", "de", "en", "ja"], texts_per_language=7, label_threshold=0.6)  # fmt: skip
    english = pd.DataFrame({"text": ["a fine day"], "label": [0], "group": ["e01"], "part": ["train"]})
    texts = some_cells("probe", settings, SimpleNamespace(reads=Path), ("924e7e84", "probe-others"),
                       english=english)["texts"].iloc[1:]  # fmt: skip
    assert texts.groupby("part").size().to_dict() == dict.fromkeys(["ar", "de", "en", "ja"], 7)
    scores = pd.read_parquet(run / f"runs/{PROFILE}/tiny/base/score/scores.parquet").query("language == 'de'")
    wanted = scores.sort_values(["sample", "prompt_id"]).head(7)
    german = texts[texts["part"] == "de"]
    assert german["text"].tolist() == wanted["continuation"].str.strip().tolist()
    assert german["group"].tolist() == wanted["prompt_id"].tolist() and german["group"].nunique() == 6
    assert german["label"].tolist() == (wanted["toxicity"] >= 0.6).astype(int).tolist()


def test_ablations_stand_in_their_chapter_and_nowhere_else(run):
    said, results = report_variables(), recorded(PROFILE, samples=50)
    assert said["ablation_seed_sentence"].startswith("Over 2 seeds of Tiny (DPO) the drop of EMT lies between")
    assert said["ablation_method_sentence"] == said["ablation_pairs_sentence"] == "Not run."
    assert said["ablation_prompts_sentence"].startswith("Languages in which both were measured for Tiny (DPO): 4. ")
    assert "Tiny (LoRA)" not in said["ablation_prompts_sentence"], "which was not run"
    assert said["further_prompts"] == "Further"
    assert (
        "seed 1" not in said["toxicity_sentence"] + said["training_sentence"] and said["dpo_learning_rate"] == "2e-06"
    )
    families = read_parquet(paths.profile_run(PROFILE) / "summary/ablations/families.parquet")
    rows = families[(families["metric"] == "emt") & (families["language"] == "mean")].set_index(["ablation", "variant"])
    seed_1 = paths.profile_run(PROFILE) / "tiny/dpo-seed-1/evaluate"
    measured = [read_json(seed_1 / language / "metrics.json")["emt"]["value"]
                for language in results.profile.languages]  # fmt: skip
    assert rows.loc[("seed", "dpo-seed-1"), "after"] == pytest.approx(sum(measured) / len(measured))
    assert rows.loc[("learning-rate", "dpo"), ["languages", "prompts", "continuations"]].tolist() == [1, 4, 2]


def control_tables(results: Results) -> SimpleNamespace:
    """The functions of the notebook summary_control on the results of a run."""
    control = Control(results)
    against_base = definitions("summary_control").compare_with_base(control)
    return definitions("summary_control", control=control, against_base=against_base)


def test_the_chapter_on_control_tells_what_was_measured(run):
    said = variables_of("control")
    assert "compares filtering, never run, plain fine-tuning and regularised" in said["control_overview"]
    assert "3 of 4 trainings were run. " in said["control_overview"]
    metrics = read_json(paths.profile_run(PROFILE) / "tiny/control/regularised/attribute_eval/metrics.json")
    share = 100 * metrics["toxicity"]["en"]["toxic_fraction"]["value"]
    assert f"with regularised it is {share:.1f}%, lower (" in said["control_toxicity_sentence"]
    others = [100 * metrics["toxicity"][language]["toxic_fraction"]["value"] for language in ("ar", "de", "ja")]
    assert f"with regularised it is {sum(others) / 3:.1f}%" in said["control_languages_sentence"]
    # A claim is made where the interval excludes zero, and nowhere else.
    table = pd.read_parquet(paths.profile_run(PROFILE) / "summary/control/toxicity.parquet")
    for language, sentence in (("en", "control_toxicity_sentence"), ("others", "control_languages_sentence")):
        rows = table[(table["language"] == language) & (table["algorithm"] != "base")].dropna(subset="drop")
        words = ["lower" if low > 0 else "higher" if high < 0 else "not detectably different"
                 for low, high in zip(rows["drop_low"], rows["drop_high"], strict=True)]  # fmt: skip
        assert re.findall(r"%, ([a-z ]+) \(", said[sentence]) == words and len(words) == 3
    assert said["control_cost_sentence"] == (
        "With a device each for head and model, regularised (parallel, 28 steps) would take 1.10 times as long as "
        "plain fine-tuning (28 steps)."
    )
    # The made-up filtering answers in English every third time, the regularised model repeats all but its first text.
    assert said["control_form_sentence"].endswith(
        "In the other languages, detectably less text is in the prompt's language with filtering (100.0% to 66.7%), "
        "and detectably more words repeat with regularised (0.0% to 20.8%)."
    )
    assert "The judge is the base model." in said["control_wins_sentence"]
    assert "SFT, language-model loss: ROC-AUC" in said["control_jigsaw_sentence"]
    assert "classification loss" not in said["control_jigsaw_sentence"], "which was not run"


def test_the_chapter_on_capability_tells_what_was_measured(run):
    said = variables_of("capability")["capability_sentence"]
    assert said.startswith(
        "On Everyday questions, Tiny (DPO) answers 62.5% of 32 questions right (chance: 25.0%) before and 53.1% after: "
        "not detectably different ("
    )
    pairs = "prefers the stereotype in 75.0% of 64 pairs (50% is unbiased) before and 50.0% after: "
    assert f"On Stereotypes, Tiny (DPO) {pairs}" in said


def test_scorers_are_told_apart_by_direction(run):
    said = variables_of("scorers")["scorers_sentence"]
    assert said.startswith("Mean EMT of Tiny (DPO) before and after tuning: under `embedded` (4 languages) it falls")
    assert "`use` cannot be matched to `embedded` in 2 of 3 languages. At matched thresholds" in said
    assert "in the same direction in 1 of 1 languages; opposite: none (detectably: none)." in said
    assert said.endswith("Tiny (LoRA): not run.")


def test_an_algorithm_is_undominated_where_no_other_is_less_toxic_and_more_accurate():
    toxic = pd.DataFrame({"model": "m", "language": "en", "algorithm": list("abcd"), "after": [9.0, 5.0, 5.0, 7.0]})
    accuracy = pd.DataFrame({"model": "m", "algorithm": list("abcde"), "value": [60.0, 50.0, 40.0, 45.0, 99.0]})

    def undominated(toxic: pd.DataFrame) -> list[str]:
        given = {"against_base": {"toxic": toxic}, "accuracy": accuracy}
        return definitions("summary_control", **given).undominated("m")

    assert undominated(toxic) == ["a", "b"]
    assert undominated(toxic.head(1)) == [], "one algorithm alone"


def test_the_published_figures_of_control_stand_beside_ours(run):
    notebook = control_tables(recorded(PROFILE, samples=50))
    main, wins, jigsaw = map(repr, (notebook.main_table(), notebook.paper_wins_table(), notebook.jigsaw_table()))
    assert "never run | not run | not run | not run | not run" in main
    assert "regularised, adaptive | 14.2 | – | 73.6 | 33.9" in main, "commonsense before knowledge, as in the profile"
    assert "regularised | 48.6 | 38.4 | 38.7 | –" in wins
    assert "SFT, classification loss | not run | not run | not run | not run" in jigsaw
    assert "SFT, classification loss | – | 0.972 | 0.314 | –" in jigsaw


def test_a_profile_that_was_never_run_has_a_report_that_says_so(run, monkeypatch):
    monkeypatch.setattr("polydetox.report.rendering.why_none", lambda: f"see `{paths.root()}/.venv/quarto.log`")
    synthetic_profile = run / "checkout/params/profiles/never.yaml"
    shutil.copy(run / f"checkout/params/profiles/{PROFILE}.yaml", synthetic_profile)
    content = yaml.safe_load(synthetic_profile.read_text())
    synthetic_profile.write_text(yaml.safe_dump({**content, "models": ["other"]}))
    shutil.copy(run / "checkout/params/models/tiny.yaml", run / "checkout/params/models/other.yaml")
    index = render("never")
    assert not (index.parent / "results-detox.html").exists() and "<img" not in index.read_text()
    assert "Why there is none: see <code>.venv/quarto.log</code>." in index.read_text(), "words, not a link"
    assert 'id="sec-toxicity"' in (index.parent / "extensions.html").read_text()


# --- what is refused --------------------------------------------------------------------------------------------


def test_an_unexecuted_notebook_is_refused_and_the_old_site_stays(run, site):
    file = paths.profile_run(PROFILE) / "tiny/base/evaluate/de/notebook.ipynb"
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


def test_a_corrupt_table_is_named(run, tmp_path):
    file = paths.profile_run(PROFILE) / "tiny/dpo/score/scores.parquet"
    original = file.read_bytes()
    file.write_bytes(original[:100])
    try:
        with pytest.raises(UserError, match=r"dpo/score/scores.parquet: not a readable Parquet file"):
            run_cells("summary_detox", run=str(write_record(PROFILE)), output_folder=str(tmp_path / "summary"))
    finally:
        file.write_bytes(original)


# --- what stands for Quarto: what it writes, and how it ends ----------------------------------------------------

QUARTO = """#!/bin/sh
# What Quarto does as far as the project is concerned: it writes _site.
test "$1" = render || exit 3
mkdir -p "$2/_site"
cp {page} "$2/_site/index.html"
echo '[{{"href": "index.html", "title": "T", "section": "", "text": "shown continuation secret words end"}}]' \\
  > "$2/_site/search.json"
echo 'ERROR: something went wrong in' "$2/index.qmd" >&2
exit {status}
"""


@pytest.fixture
def quarto(run, tmp_path, monkeypatch):
    """A command that stands for Quarto and a copy of the run; returns what sets its page and status."""
    monkeypatch.setenv("POLYDETOX_RUNS", str(shutil.copytree(run / "runs", tmp_path / "runs")))

    def make(page: str, status: int = 0) -> None:
        (tmp_path / "page.html").write_text(page)
        command = tmp_path / "quarto"
        command.write_text(QUARTO.format(page=tmp_path / "page.html", status=status))
        command.chmod(0o755)
        monkeypatch.setenv("QUARTO", str(command))

    return make


def test_quarto_renders_where_it_is_named(quarto):
    covered = cover(["German"], [passage("continuation", "secret words", "de")])
    quarto(f"<p>by Quarto</p>{covered}")
    index = render(PROFILE)
    assert index == paths.site(PROFILE) / "index.html"
    assert index.read_text() == f"<p>by Quarto</p>{covered}"
    (entry,) = read_json(paths.site(PROFILE) / "search.json")
    assert entry == {"href": "index.html", "title": "T", "section": "", "text": ""}
    assert failure_note(PROFILE) is None
    assert "It was asked for." in render(PROFILE, preview=True).read_text()


@pytest.mark.parametrize(
    ("page", "status", "said", "kept"),
    [("<p>x</p>", 1, "status 1: ERROR: something went wrong in ", False),
     ("<b>?var:x</b>", 0, "index.html: '?var:x' was not resolved; Quarto's site is kept in ", True)],
)  # fmt: skip
def test_a_failing_quarto_ends_in_the_preview_with_its_error_beside_it(quarto, capsys, page, status, said, kept):
    quarto(page, status)
    index = render(PROFILE)
    text = index.read_text()
    assert "This is a preview" in text and "Quarto failed" in text and f'href="{ERROR_FILE}"' in text
    error = (index.parent / ERROR_FILE).read_text()
    assert error.startswith(said) and "ERROR: something went wrong" in error
    assert str(paths.runs()) not in error + text
    refused = paths.site(PROFILE).with_name("site.refused")
    assert refused.is_dir() == kept
    if kept:
        assert (refused / "index.html").read_text() == page and "site.refused" in error
    note = failure_note(PROFILE)
    assert note.startswith(f"The report is a preview, since Quarto failed: {said}") and ERROR_FILE in note
    assert note in capsys.readouterr().err
    quarto("<p>mended</p>")
    assert render(PROFILE).read_text() == "<p>mended</p>"
    assert failure_note(PROFILE) is None and not refused.exists()
