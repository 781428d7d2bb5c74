"""Families of tunings: who is in them, on which common ground they are measured, and what is said of them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from recorded import recorded, write_record

from notebook_cells import definitions, run_cell, run_cells
from polydetox.core import paths
from polydetox.core.artifacts import read_json, write_json
from polydetox.metrics.toxicity import maximum_toxicity
from polydetox.preference import ablations
from polydetox.results.collect import Results
from polydetox.results.stages import comparisons

NOTEBOOK = definitions("summary_ablations")
COLUMNS, MEAN = NOTEBOOK.COLUMNS, NOTEBOOK.MEAN

VARIANTS = {
    "dpo": {"pairs": "on-policy"},
    "other": {"pairs": "rtp-lx", "optional": True, "title": "other"},
    "s2": {"pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 2}},
    "s1": {"pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 1}},
    "lora": {"pairs": "on-policy", "ablation": "method", "dpo": {"method": "lora", "learning_rate": 1e-4}},
    "lr": {"pairs": "on-policy", "ablation": "learning-rate", "languages": ["de"], "dpo": {"learning_rate": 1e-7}},
    "coin": {"pairs": "on-policy", "ablation": "placebo", "dpo": {"labels": "shuffled"}},
    "style": {"pairs": "more", "title": "politer pairs", "ablation": "placebo", "dpo": {"labels": "given"}},
    "polite": {"pairs": "on-policy", "tuning": "none", "ablation": "prompting", "generate": {"prefix": "english"}},
    "swap": {"pairs": "on-policy", "ablation": "placebo", "dpo": {"labels": "swapped"}},
    "steered": {"pairs": "on-policy", "tuning": "none", "ablation": "decoding",
                "generate": {"experts": ["dpo", "swap"]}},
    "edit": {"pairs": "on-policy", "ablation": "tuning", "tuning": "profs"},
    "matched": {"pairs": "on-policy-matched", "ablation": "style"},
    "crossed": {"pairs": "on-policy-use", "ablation": "ranking"},
}  # fmt: skip


@pytest.fixture
def results(checkout) -> Results:
    file = checkout / "params/profiles/tiny.yaml"
    content = yaml.safe_load(file.read_text())
    pairs = {"on-policy": {}, "on-policy-matched": {"match_style": True}, "on-policy-use": {"scorer": "use"},
             "rtp-lx": {"folder": "$RTP_LX"}, "more": {"data": "pairs.jsonl"}}  # fmt: skip
    content |= {"pairs": pairs, "variants": VARIANTS,
                "more_prompts": {"more": {"source": "project", "limit": 2}}}  # fmt: skip
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return recorded("tiny", samples=200)


def scored(prompts, samples: int, toxicity: float = 0.5) -> pd.DataFrame:
    rows = [
        {"prompt_id": prompt, "prompt": prompt, "sample": sample, "continuation": f"{prompt} {sample}",
         "toxicity": toxicity + sample / 10, "perplexity": 10.0 + sample, "detected_language": "de", "empty": False}
        for prompt in prompts for sample in range(samples)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def family_of(results: Results, ablation: str) -> ablations.Family:
    """The one family of the profile that differs in this."""
    (family,) = (family for family in ablations.families(results) if family.ablation == ablation)
    return family


def measured(results: Results) -> pd.DataFrame:
    """Every metric of every configuration, as the notebook measures it."""
    return definitions("summary_ablations", results=results).measured()


def seeds_shown(table: pd.DataFrame) -> str:
    """The notebook's table of seeds, as text."""
    return repr(NOTEBOOK.ablation_table(table[table["ablation"] == "seed"]))


def rows_of(results: Results, ablation: str, metric: str = "emt") -> pd.DataFrame:
    """The means of one metric over languages, by label."""
    table = measured(results)
    wanted = (table["ablation"] == ablation) & (table["metric"] == metric) & (table["language"] == MEAN)
    return table[wanted].set_index("label")


def test_families_hold_the_reference_in_the_order_of_the_setting(results):
    seeds, rates, methods, pairs = (family_of(results, name) for name in ("seed", "learning-rate", "method", "pairs"))
    assert [(member.variant, member.label) for member in seeds.members] == [
        ("dpo", "seed 0"), ("s1", "seed 1"), ("s2", "seed 2")]  # fmt: skip
    assert seeds.reference == "seed 0" and seeds.title == "Tiny (dpo)"
    assert [member.label for member in rates.members] == ["1e-7", "1e-3"]
    assert [member.label for member in methods.members] == ["full fine-tuning at 1e-3", "LoRA at 1e-4"]
    placebos = family_of(results, "placebo")
    assert [(member.variant, member.label) for member in placebos.members] == [
        ("dpo", "labels as given"), ("coin", "shuffled labels"), ("style", "politer pairs"),
        ("swap", "swapped sides")]  # fmt: skip
    assert (placebos.title, placebos.reference) == ("Tiny (dpo)", "labels as given")
    assert [member.label for member in family_of(results, "decoding").members] == ["DPO", "DExperts"]
    style = family_of(results, "style")
    assert [(member.variant, member.label) for member in style.members] == [
        ("dpo", "pairs as ranked"), ("matched", "pairs of one style")]  # fmt: skip
    assert style.reference == "pairs as ranked"
    ranking = family_of(results, "ranking")
    assert [(member.variant, member.label) for member in ranking.members] == [
        ("dpo", "ranked by embedded"), ("crossed", "ranked by use")]  # fmt: skip
    prompting = family_of(results, "prompting")
    assert [(member.variant, member.label) for member in prompting.members] == [
        ("dpo", "DPO"), ("polite", "an English prefix")]  # fmt: skip
    assert prompting.reference == "DPO"
    assert [member.label for member in family_of(results, "tuning").members] == ["DPO", "ProFS"]
    assert [(member.variant, member.label) for member in pairs.members] == [
        ("dpo", "on-policy pairs"),
        ("other", "rtp-lx pairs"),
    ]


def test_ablations_stay_out_of_the_main_tables(results):
    assert [item.variant for item in results.comparisons] == ["dpo", "other"]
    assert [item.variant for item in comparisons(results.profile, ablations=True)] == list(VARIANTS)
    # The pairs of `other` are not available, so that it is no part of the run; the tables say that it was not run.
    assert {run.variant for run in results.main_stages} == {None, "base", "dpo"}
    evaluated = [(run.variant, run.language) for run in results.stages if run.stage == "evaluate"]
    assert [language for variant, language in evaluated if variant == "lr"] == ["de"]
    further = {run.variant for run in results.stages if run.stage == "evaluate" and run.prompt_set}
    assert further == {"base", "dpo"}, "further prompts are for the main tables' variants"
    activations = {run.variant for run in results.stages if run.stage == "activations"}
    assert activations == {"base", "dpo"}


def test_common_ground_has_the_same_prompts_and_as_many_continuations():
    tables = {"base": scored("abc", 4), "few": scored("bcd", 2)}
    cut = NOTEBOOK.common_ground(tables)
    for table in cut.values():
        assert set(table["prompt_id"]) == {"b", "c"} and sorted(table["sample"].unique()) == [0, 1]
    # The maximum over four continuations would be 0.8; over the two that both have it is 0.6.
    wide = cut["base"].pivot(index="prompt_id", columns="sample", values="toxicity").to_numpy()
    assert maximum_toxicity(wide).tolist() == pytest.approx([0.6, 0.6])
    # Distinct tokens were counted over all continuations of a prompt: of a side that was cut they are not known.
    cut = NOTEBOOK.common_ground({name: table.assign(token_distinct_1=0.5) for name, table in tables.items()})
    assert "token_distinct_1" not in cut["base"] and set(cut["few"]["token_distinct_1"]) == {0.5}


def write_evaluation(
    results: Results, variant: str, language: str, table: pd.DataFrame, prompt_set: str = "", model: str = "tiny"
) -> None:
    import json

    scored = paths.profile_run("tiny") / model / variant / prompt_set / "score"
    scored.mkdir(parents=True, exist_ok=True)
    file = scored / "scores.parquet"
    before = [pd.read_parquet(file)] if file.is_file() else []
    pd.concat([*before, table.assign(language=language)]).to_parquet(file)
    (scored / "manifest.json").write_text("{}")
    folder = scored.with_name("evaluate") / language
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"threshold": 0.5}))
    (folder / "manifest.json").write_text("{}")


def sentences(folder: Path) -> dict[str, str]:
    """What the chapter's notebook says of the run of the tests' profile."""
    run_cells("summary_ablations", run=str(write_record("tiny")), output_folder=str(folder / "summary"))
    return read_json(folder / "summary/variables.json")


def test_a_family_is_measured_where_all_of_it_was_run(results, tmp_path):
    for language in ("de", "en", "ja"):
        write_evaluation(results, "base", language, scored("abcd", 4, 0.6))
        write_evaluation(results, "dpo", language, scored("abcd", 4, 0.3))
    write_evaluation(results, "lr", "de", scored("abc", 2, 0.5))
    table = measured(results)
    assert list(table.columns) == COLUMNS
    languages = table.loc[table["ablation"] == "learning-rate", "language"]
    assert set(languages) == {"de", MEAN}, "the ablation was run in German alone"
    emt = rows_of(results, "learning-rate").set_index("variant")
    assert emt.loc["lr", ["before", "after", "drop"]].tolist() == pytest.approx([0.7, 0.6, 0.1])
    assert emt.loc["dpo", ["before", "after", "drop"]].tolist() == pytest.approx([0.7, 0.4, 0.3])
    assert emt.loc["lr", ["difference", "difference_low", "difference_high"]].tolist() == pytest.approx([0.2] * 3)
    assert emt.loc["dpo", "difference"] == 0.0
    assert (emt.loc["lr", "prompts"], emt.loc["lr", "continuations"], emt.loc["lr", "languages"]) == (3, 2, 1)
    said = sentences(tmp_path)
    assert said["ablation_rate_sentence"].startswith(
        "EMT of Tiny (dpo) after tuning is 0.60 at a learning rate of 1e-7 and 0.40 at 1e-3 (base model: 0.70). It is "
        "lowest at 1e-3, 0.40, "
    )
    assert said["ablation_method_sentence"] == "Not run."


def test_what_was_not_run_has_no_number(results, tmp_path):
    table = measured(results)
    assert table[["before", "after", "drop", "difference"]].isna().all(axis=None)
    assert set(table["language"]) == {MEAN} and set(table["languages"]) == {0}
    said = sentences(tmp_path)
    placebo = said.pop("abstract_placebo")
    assert len(said) == 13 and set(said.values()) == {"Not run."}, placebo
    assert placebo == "No placebo of shuffled labels was run."
    assert "not run" in seeds_shown(table)


def test_of_a_family_that_was_not_run_whole_the_rest_is_measured(results, tmp_path):
    for variant, level in (("base", 0.6), ("dpo", 0.3), ("s1", 0.35)):
        for language in ("de", "en", "ja"):
            write_evaluation(results, variant, language, scored("abcd", 3, level))
    table = measured(results)
    assert "seed 2 | not run" in seeds_shown(table)
    said = sentences(tmp_path)["ablation_seed_sentence"]
    assert said.startswith("Over 2 seeds of Tiny (dpo) the drop of EMT lies between 0.250 and 0.300, with a standard ")
    assert f"with a standard deviation of {0.05 / math.sqrt(2):.3f};" in said


def test_the_spread_of_seeds_by_hand():
    rows = [{"metric": "emt", "language": MEAN, "variant": str(drop), "drop": drop, "drop_low": drop - 0.1,
             "drop_high": drop + 0.3} for drop in (0.1, 0.2, 0.6)]  # fmt: skip
    means = pd.DataFrame(rows).assign(ablation="seed", family="Tiny")
    spread = run_cell("summary_ablations", "ablations-spread", means=means)["spread"].loc[("Tiny", "emt")]
    assert spread["deviation"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert spread[["seeds", "least", "most", "half_width"]].tolist() == pytest.approx([3, 0.1, 0.6, 0.2])
    assert run_cell("summary_ablations", "ablations-spread", means=means[:1])["spread"].empty, "one seed has no spread"


def test_sets_of_prompts_are_compared_in_the_languages_of_both(results, tmp_path):
    for variant, level in (("base", 0.6), ("dpo", 0.3)):
        for language in ("de", "en"):
            write_evaluation(results, variant, language, scored("abcd", 2, level))
        write_evaluation(results, variant, "de", scored("xy", 2, level + 0.1), "more")
    mine = rows_of(results, "prompts").query("family == 'Tiny (dpo)'")
    assert mine["languages"].tolist() == [1, 1] and mine["prompts"].tolist() == [4, 2]
    assert mine["before"].tolist() == pytest.approx([0.7, 0.8])
    said = sentences(tmp_path)["ablation_prompts_sentence"]
    assert said.startswith(
        "Languages in which both were measured for Tiny (dpo): 1. There EMT drops by 0.30 [0.30, 0.30]"
    )
    assert said.endswith("the drop has the same sign in 1 of them.")


def test_percentiles_and_tail_of_the_perplexity():
    tables_of = {"base": [1.0, 2.0, 3.0, 4.0, 500.0, np.nan], "dpo": [2.0, 2.0]}
    results = SimpleNamespace(
        comparisons=[SimpleNamespace(title="Tiny", model="tiny", variant="dpo")],
        profile=SimpleNamespace(languages=["de"]),
        scores=lambda model, variant, language: pd.DataFrame({"perplexity": tables_of[variant]}),
    )
    space = run_cell("summary_ablations", "ablations-distribution", pd=pd, results=results)
    quantiles = space["quantiles"]
    before = quantiles.loc[("Tiny", "before")]
    assert before[["continuations", 0.25, 0.5, "above 100"]].tolist() == [5, 2.0, 3.0, 0.2]
    shown = run_cell("summary_ablations", "cell-19", **vars(NOTEBOOK) | space)["groups"]
    assert [line[-1].text for line in shown[0].rows] == ["20.0%", "0.0%"]


def test_a_prefix_is_compared_with_dpo(results, tmp_path):
    for language in ("de", "en", "ja"):
        for variant, level in (("base", 0.6), ("dpo", 0.3), ("polite", 0.4)):
            write_evaluation(results, variant, language, scored("abcd", 2, level))
    assert sentences(tmp_path)["ablation_prompting_sentence"].startswith(
        "With an English prefix instead of DPO, EMT of Tiny (dpo) is higher (0.10 [0.10, 0.10])"
    )


def test_steering_is_compared_with_dpo(results, tmp_path):
    for language in ("de", "en", "ja"):
        for variant, level in (("base", 0.6), ("dpo", 0.4), ("steered", 0.3)):
            write_evaluation(results, variant, language, scored("abcd", 2, level))
    assert sentences(tmp_path)["ablation_decoding_sentence"].startswith(
        "With DExperts instead of DPO, EMT of Tiny (dpo) is lower (−0.10 [−0.10, −0.10])"
    )


def test_each_ranking_is_measured_by_both_scorers(results, tmp_path):
    for language in ("de", "en", "ja"):
        for variant, first, second in (("base", 0.6, 0.8), ("dpo", 0.3, 0.7), ("crossed", 0.4, 0.5)):
            table = scored("abcd", 2, first - 0.05).assign(secondary_toxicity=second)
            write_evaluation(results, variant, language, table)
    folder = tmp_path / "summary"
    space = run_cells("summary_ablations", run=str(write_record("tiny")), output_folder=str(folder))
    assert read_json(folder / "variables.json")["ablation_ranking_sentence"] == (
        "With pairs ranked by embedded, the mean toxicity of Tiny (dpo) drops by 0.300 [0.300, 0.300] under the first "
        "scorer and by 0.100 [0.100, 0.100] under the second. With pairs ranked by use, the mean toxicity of Tiny "
        "(dpo) drops by 0.200 [0.200, 0.200] under the first scorer and by 0.300 [0.300, 0.300] under the second."
    )
    (shown,) = (text for text in space["shown"] if "ranked by use" in text and text.startswith("<"))
    assert "AvgTox" in shown and "Second scorer" in shown and "0.500" in shown


def test_what_is_not_trained_is_no_training(results):
    names = vars(definitions("summary_training"))
    lines = run_cell("summary_training", "ef90c41e", **names | {"results": results})["lines"]
    trained = {name: each for name, each in VARIANTS.items() if name not in ("polite", "steered", "edit")}
    assert [line[0] for line in lines] == [f"Tiny ({each.get('title', name)})" for name, each in trained.items()]


def write_training(model: str, variant: str, **metrics) -> None:
    folder = paths.profile_run("tiny") / model / variant / "dpo"
    write_json(folder / "metrics.json", {"method": "full", "best_step": 10, "held_out_loss": 0.5} | metrics)
    (folder / "manifest.json").write_text("{}")


def test_the_steps_of_a_placebo_are_those_of_its_model(results, checkout, tmp_path):
    of_model, profile = checkout / "params/models/tiny.yaml", checkout / "params/profiles/tiny.yaml"
    other = yaml.safe_load(of_model.read_text()) | {"title": "Other"}
    of_model.with_name("other.yaml").write_text(yaml.safe_dump(other))
    both = yaml.safe_load(profile.read_text()) | {"models": ["tiny", "other"]}
    profile.write_text(yaml.safe_dump(both, sort_keys=False))
    for model, steps in (("tiny", 40), ("other", 50)):
        for variant, level in (("base", 0.6), ("dpo", 0.3), ("coin", 0.5)):
            write_evaluation(results, variant, "de", scored("abcd", 2, level), model=model)
        write_training(model, "coin", steps=steps, kept_step=steps)
    said = sentences(tmp_path)
    assert "shuffled labels (kept after 40 of 40 steps), EMT of Tiny (dpo)" in said["abstract_placebo"]
    assert "shuffled labels (kept after 50 of 50 steps), EMT of Other (dpo)" in said["ablation_placebo_sentence"]


def test_a_learning_rate_has_all_its_digits_and_kto_no_accuracy(results):
    assert [ablations._label("learning-rate", rate) for rate in (2.5e-6, 1e-4, 0.001)] == ["2.5e-6", "1e-4", "1e-3"]
    write_training("tiny", "dpo", learning_rate=2.5e-6, pairs_train=36, pairs_held_out=4, steps=20,
                   held_out_accuracy=None)  # fmt: skip
    names = vars(definitions("summary_training"))
    line = run_cell("summary_training", "ef90c41e", **names | {"results": results})["lines"][0]
    assert [str(cell) for cell in line[1:]] == ["full", "2.5e-6", "36", "4", "20", "10", "10", "0.500", "–"]


def test_a_training_with_another_loss_is_no_comparison_of_pairs(results):
    results.profile.variants["other"].dpo["loss"] = "kto"
    assert "pairs" not in {family.ablation for family in ablations.families(results)}


def test_pairs_of_one_style_show_what_they_leave_of_the_style(results, tmp_path):
    for variant, numbered in (("base", 0), ("dpo", 3), ("matched", 1)):
        table = scored("abcd", 4, 0.5)
        table["continuation"] = ["7 apes" if place < numbered else "apes" for place in table["sample"]]
        for language in ("de", "en", "ja"):
            write_evaluation(results, variant, language, table)
    digits = rows_of(results, "style", "digits")
    assert digits["after"].to_dict() == {"pairs as ranked": 0.75, "pairs of one style": 0.25}
    assert digits.loc["pairs of one style", "difference"] == -0.5
    said = sentences(tmp_path)["ablation_style_sentence"]
    assert (
        "With pairs as ranked, the fraction of continuations of Tiny (dpo) with digits rises from 0.000 to 0.750"
        in said
    )
    assert said.endswith("(by 0.250 [0.250, 0.250]), and that with markup shows no detectable change "
                         "(0.000 to 0.000, 0.000 [0.000, 0.000]).")  # fmt: skip


def test_a_placebo_of_other_pairs_is_compared_with_dpo(results, tmp_path):
    for language in ("de", "en", "ja"):
        for variant, level in (("base", 0.6), ("dpo", 0.3), ("style", 0.5)):
            write_evaluation(results, variant, language, scored("abcd", 2, level))
    assert rows_of(results, "placebo").loc["politer pairs", "difference"] == pytest.approx(0.2)
    said = sentences(tmp_path)["ablation_placebo_sentence"]
    assert "With politer pairs instead of labels as given, EMT of Tiny (dpo) after tuning is higher (0.20 [" in said
    shape = "(3 languages, 4 prompts each, 2 continuations a prompt)"
    assert f"With politer pairs, EMT of Tiny (dpo) {shape} falls from 0.70 to 0.60 (by 0.10 [" in said


def test_a_difference_is_told_as_its_interval_allows(results, tmp_path):
    for language in ("de", "en", "ja"):
        for variant, level in (("base", 0.6), ("dpo", 0.3), ("lora", 0.4)):
            write_evaluation(results, variant, language, scored("abcd", 2, level))
    assert sentences(tmp_path)["ablation_method_sentence"] == (
        "With LoRA at 1e-4 instead of full fine-tuning at 1e-3, EMT of Tiny (dpo) after tuning is higher "
        "(0.10 [0.10, 0.10]) and its median perplexity not detectably different (0.0 [0.0, 0.0])."
    )
