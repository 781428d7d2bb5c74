"""Parameters: what is valid, what is refused, and in which words."""

from __future__ import annotations

import ast
import json

import nbformat
import pytest
import yaml

from polydetox import params, workflow
from polydetox.errors import UserError, nearest
from polydetox.notebook import begin
from tiny import CHECKOUT, TINY_PROFILE


def rewrite(file, **changes):
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | changes))


def test_every_shipped_file_is_valid():
    for name in params.model_names():
        assert params.load_model(name).title
    for name in params.profile_names():
        profile = params.load_profile(name)
        for model in profile.models:
            for variant in params.variants_of(profile, model):
                settings = params.stage_parameters("generate", profile, model, variant=variant)
                assert settings["max_new_tokens"] == 20


def test_paper_profile_has_the_papers_settings():
    profile = params.load_profile("paper")
    full = params.stage_parameters("dpo", profile, "mgpt", variant="dpo")
    assert (full["method"], full["learning_rate"], full["batch_size"], full["epochs"]) == ("full", 1e-5, 4, 5)
    assert (full["beta"], full["warmup_steps"], full["weight_decay"], full["max_grad_norm"]) == (0.1, 150, 0.05, 10)
    small = params.stage_parameters("dpo", profile, "llama-2-7b", variant="dpo")
    assert (small["method"], small["batch_size"], small["gradient_accumulation_steps"]) == ("qlora", 1, 4)
    assert (small["lora_rank"], small["lora_alpha"], small["lora_dropout"], small["epochs"]) == (64, 16, 0.05, 20)
    drawn = params.stage_parameters("generate", profile, "mgpt", variant="base")
    assert (drawn["n"], drawn["temperature"], drawn["top_p"]) == (25, 0.9, 0.8)


def test_published_checkpoint_is_not_trained():
    assert params.variants_of(params.load_profile("paper"), "bloom-1b7-detox") == ["base", "published"]


@pytest.mark.parametrize("stage", params.STAGES)
def test_notebook_defaults_are_the_stage_defaults(stage):
    """The parameters cell of each notebook declares every parameter once, with the default of its class."""
    notebook = nbformat.read(CHECKOUT / "notebooks" / f"{stage}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    declared = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cells[0].source).body}
    assert declared == params.STAGES[stage]().model_dump()


def test_a_later_source_wins(checkout):
    file = checkout / "params/models/tiny.yaml"
    rewrite(file, generate={"n": 7, "top_k": 5})
    profile = params.load_profile("tiny")
    assert params.stage_parameters("generate", profile, "tiny", variant="base")["n"] == 3
    assert params.stage_parameters("generate", profile, "tiny", variant="base")["top_k"] == 5
    assert params.stage_parameters("dpo", profile, "tiny", variant="dpo-lora")["method"] == "lora"
    assert params.stage_parameters("dpo", profile, "tiny", variant="dpo")["method"] == "full"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"langages": []}, ["params/profiles/tiny.yaml", "'langages'", "'languages'"]),
        ({"languages": ["en", "dd"]}, ["params/profiles/tiny.yaml", "languages", "'dd'"]),
        ({"generate": {"temprature": 1}}, ["params/profiles/tiny.yaml", "generate", "'temprature'", "'temperature'"]),
        ({"generate": {"lang": "en"}}, ["generate", "'lang'"]),
        ({"generate": {"top_p": 1.5}}, ["generate", "top_p", "1.5"]),
        ({"models": ["tny"]}, ["params/profiles/tiny.yaml", "'tny'", "'tiny'"]),
        ({"pairs": {"onpolicy": {}}}, ["pairs", "onpolicy", "on-policy"]),
        ({"variants": {"base": {"pairs": "on-policy"}}}, ["variant 'base'"]),
        ({"variants": {"a": {"pairs": "rtp-lx"}}}, ["variant 'a'", "rtp-lx"]),
        ({"variants": {"a": {"pairs": "on-policy", "dpo": {"bta": 1}}}}, ["variants.a.dpo", "'bta'", "'beta'"]),
        ({"prompts": {"source": "rtplx"}}, ["prompts.source", "'rtplx'", "rtp-lx"]),
        ({"mechanism": {"probe": {"epoch": 3}}}, ["mechanism.probe", "'epoch'", "'epochs'"]),
        ({"mechanism": {"intervene": {"offsets": [-1.0]}}}, ["mechanism.intervene", "0 among them"]),
        ({"mechanism": {"probe": {"prompt_limit": 3}}}, ["unknown key 'prompt_limit'"]),
        ({"mechanism": {"probe": {"labels": {1: "bad"}}}}, ["mechanism.probe", "labels", "toxic, neutral, skipped"]),
        ({"alignment": {"retrieval": {"sentences": "projekt"}}}, ["alignment.retrieval", "'project'"]),
        ({"variants": {}}, ["variants: this key is required", "'control'"]),
        (
            {"variants": {}, "control": {"methods": {"plain": {"algorithm": "plain"}}}, "agreement": {}},
            ["agreement: is about the ways of tuning"],
        ),
        ({"models": []}, ["models", "unless the profile has a 'world'"]),
        ({"world": {"sizes": {"M": {"hidden": 32, "layers": 1}}, "alignments": [0], "seeds": [0]}}, ["'M'"]),
        ({"world": {"sizes": {"m": {"hidden": 33, "layers": 1}}, "alignments": [0], "seeds": [0]}}, ["hidden"]),
        ({"world": {"sizes": {"m": {"hidden": 32, "layers": 1}}, "alignments": [1.5], "seeds": [0]}}, ["alignments"]),
        ({"world": {"sizes": {"m": {"hidden": 32, "layers": 1}}, "alignments": [0.5, 0.501], "seeds": [0]}}, ["twice"]),
        ({"variants": {"a": {"pairs": "on-policy", "languages": ["de"]}}}, ["variants.a", "'ablation'"]),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {"pairs": "on-policy", "ablation": "seed"}}},
            ["variant 'b'", "'dpo: seed:'"],
        ),
        (
            {"variants": {"b": {"pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 1}}}},
            ["variant 'b'", "is compared with a variant of the main tables"],
        ),
        (
            {
                "variants": {
                    "a": {"pairs": "on-policy"},
                    "b": {"pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 1}, "languages": ["sv"]},
                }
            },
            ["variant 'b'", "does not list sv"],
        ),
        ({"variants": {"a": {"pairs": "on-policy", "ablation": "sead"}}}, ["variants.a.ablation", "'sead'", "'seed'"]),
        ({"more_prompts": {"generate": {"source": "project"}}}, ["more_prompts", "'generate'", "no stage's name"]),
        ({"more_prompts": {"b": {"source": "rtp-lx"}}}, ["more_prompts.b", "folder: is needed"]),
        (
            {
                "pairs": {"on-policy": {}, "rtp-lx": {"folder": "x"}},
                "more_prompts": {"b": {"source": "rtp-lx", "folder": "x"}},
            },
            ["limit: is needed"],
        ),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_its_remedy(checkout, change, words):
    rewrite(checkout / "params/profiles/tiny.yaml", **change)
    with pytest.raises(UserError) as raised:
        params.load_profile("tiny")
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_plan_lists_everything_that_is_missing(checkout, monkeypatch):
    for variable in ("RTP_LX", "TOXICITY_PAIRWISE", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("POLYDETOX_DATA", str(checkout / "nothing"))
    assert workflow.problems("tiny") == []
    rewrite(
        checkout / "params/profiles/tiny.yaml",
        pairs={"toxicity-pairwise": {"folder": "$TOXICITY_PAIRWISE"}},
        variants={"dpo": {"pairs": "toxicity-pairwise"}},
        prompts={"source": "rtp-lx", "folder": "$RTP_LX"},
        alignment={"retrieval": {"folder": "/nowhere"}},
    )
    found = workflow.problems("tiny")
    assert len(found) == 4, found
    assert "`polydetox data fetch rtp-lx`" in found[0] and "`polydetox data fetch toxicity-pairwise`" in found[1]
    assert "mechanism: probe: texts: is needed" in found[2] and "/nowhere: no such folder" in found[3]
    with pytest.raises(UserError, match="RTP_LX is not set"):
        workflow.preflight("tiny")
    data = [line.split(":")[0] for line in workflow.licences("tiny")]
    assert data == ["RTP-LX", "toxicity_pairwise"], "a local folder asks for nothing; the data have licences"
    assert "(not at hand)" in workflow.licences("tiny")[0]
    rewrite(checkout / "params/models/tiny.yaml", use="hub", hub="a/b", licence="Some licence")
    assert (
        workflow.licences("tiny")[0] == "Tiny: Some licence (revision not pinned)"
        and "HF_TOKEN is not set" in workflow.licences("tiny")[1]
    )
    control = {"methods": {"plain": {"algorithm": "plain"}}, "win_rate": {"judge": "owner/judge"}}
    rewrite(checkout / "params/profiles/tiny.yaml", control=control)
    assert "owner/judge: see the Hub (revision not pinned)" in workflow.licences("tiny"), "judges have licences too"


def test_labelled_texts_are_read_before_anything_starts(checkout, tmp_path):
    file = tmp_path / "texts.csv"
    probe = {"texts": str(file)}
    rewrite(checkout / "params/profiles/tiny.yaml", mechanism={"probe": probe})
    file.write_text("text,label\na,0\nb,1\nc,-1\n")
    (found,) = workflow.problems("tiny")
    assert f"{file}:3: label -1 (1 rows) is not one of 0, 1; say what each label means" in found
    file.write_text("text,label\na,1\nb,1\n")
    (found,) = workflow.problems("tiny")
    assert found == f"{file}: all texts are toxic; give texts of both kinds, or say in 'labels' or 'label_threshold' " \
                    "which are toxic"  # fmt: skip
    file.write_text("text,label\na,4\nb,1\nc,-1\n")
    rewrite(
        checkout / "params/profiles/tiny.yaml",
        mechanism={"probe": probe | {"labels": {4: "toxic", 1: "neutral", -1: "skipped"}}},
    )
    assert workflow.problems("tiny") == []


FULL = {
    "pairs": {"on-policy": {"n": 4}, "rtp-lx": {"folder": "$RTP_LX"}},
    "more_prompts": {"rtp-lx": {"source": "rtp-lx", "folder": "$RTP_LX", "limit": 2, "optional": True}},
    "variants": {
        "dpo": {"pairs": "on-policy"},
        "other": {"pairs": "rtp-lx", "optional": True},
        "lr": {"pairs": "on-policy", "ablation": "learning-rate", "languages": ["de"], "prompt_limit": 3,
               "dpo": {"learning_rate": 1e-6}, "generate": {"n": 2}},
    },
}  # fmt: skip


def test_an_ablation_takes_fewer_languages_prompts_and_continuations(checkout):
    rewrite(checkout / "params/profiles/tiny.yaml", **FULL)
    profile = params.load_profile("tiny")
    drawn = params.stage_parameters("generate", profile, "tiny", variant="lr")
    assert (drawn["n"], drawn["prompt_limit"], drawn["languages"]) == (2, 3, ["de"])
    whole = params.stage_parameters("generate", profile, "tiny", variant="dpo")
    assert (whole["n"], whole["prompt_limit"], whole["languages"]) == (3, 4, ["de", "en", "ja"])
    assert params.languages_of(profile, "lr") == ["de"] and params.languages_of(profile, "dpo") == ["de", "en", "ja"]
    assert params.stage_parameters("dpo", profile, "tiny", variant="lr")["learning_rate"] == 1e-6
    assert profile.ablated_from(profile.variants["lr"]) == "dpo"


def test_optional_data_are_left_out_with_a_word_and_used_where_they_are(checkout, monkeypatch):
    monkeypatch.delenv("RTP_LX", raising=False)
    monkeypatch.setenv("POLYDETOX_DATA", str(checkout / "nothing"))
    rewrite(checkout / "params/profiles/tiny.yaml", **FULL)
    workflow.preflight("tiny")
    without = workflow.Graph("tiny")
    assert without.variants("tiny") == ["base", "dpo", "lr"] and without.compared("tiny") == ["base", "dpo"]
    assert not without.prompt_sets and without.kinds("tiny") == ["on-policy"]
    assert not any("rtp-lx" in result or "/other/" in result for result in without.results())
    said = workflow.skipped("tiny")
    assert len(said) == 2 and "variant other" in said[0] and "prompts rtp-lx" in said[1]

    folder = checkout / "rtp"
    folder.mkdir()
    rows = [{"Index": row, "Prompt": f"p{row}", "Completion": f"bad {row}", "BenignCompletion": f"good {row}"}
            for row in range(6)]  # fmt: skip
    for locale in ("EN", "DE"):
        (folder / f"RTP_LX_{locale}.json").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("RTP_LX", str(folder))
    workflow.preflight("tiny")
    graph = workflow.Graph("tiny")
    assert graph.compared("tiny") == ["base", "dpo", "other"] and graph.prompt_sets == {"rtp-lx": ["de", "en"]}
    assert workflow.skipped("tiny") == ["prompts rtp-lx: not at hand in ja"]
    results = graph.results()
    assert "runs/tiny/tiny/other/rtp-lx/evaluate/de/manifest.json" in results
    assert not any("/lr/rtp-lx/" in result or "/lr/evaluate/en" in result for result in results)
    profile = params.load_profile("tiny")
    more = params.stage_parameters("generate", profile, "tiny", variant="base", prompt_set="rtp-lx")
    assert (more["prompts_source"], more["prompts_folder"], more["prompt_limit"]) == ("rtp-lx", "$RTP_LX", 2)
    evaluated = params.stage_parameters("evaluate", profile, "tiny", variant="base", lang="de", prompt_set="rtp-lx")
    assert evaluated["prompt_set"] == "rtp-lx"
    job = json.loads(graph.parameters("generate", checkout, "tiny", variant="base", prompt_set="rtp-lx"))
    assert job["languages"] == ["de", "en"], "those that the set has"
    pairs = params.stage_parameters("pairs", profile, "tiny", kind="rtp-lx")
    assert pairs["held_out_prompts"] == 2, "what further prompts evaluate is not trained on"

    monkeypatch.setenv("RTP_LX", str(checkout / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        workflow.preflight("tiny")


def test_the_corpus_of_control_is_told_every_evaluated_prompt(checkout):
    """No stage samples a method of attribute control on a prompt that the corpus may hold."""
    control = {"methods": {"plain": {"algorithm": "plain"}}}

    def told(limit, **sections):
        prompts = {"source": "toxigen", "folder": "$TOXIGEN", "limit": limit}
        rewrite(checkout / "params/profiles/tiny.yaml", prompts=prompts, control=control | sections)
        values = params.control_parameters("control_corpus", params.load_profile("tiny"), "tiny")
        return values["prompts_source"], values["prompts_folder"], values["prompt_limit"]

    assert told(5) == ("toxigen", "$TOXIGEN", 5)
    assert told(None) == ("toxigen", "$TOXIGEN", None)
    assert told(5, constrained_decode={"prompt_limit": 3}, jigsaw_classify={"prompt_limit": 8})[2] == 8
    assert told(5, constrained_decode={"prompt_limit": None})[2] is None
    assert told(5, corpus={"source": "model"}) == ("project", "", None), "which reads no statements"


def test_sections_of_the_mechanism_reach_their_stages(checkout):
    profile = params.load_profile("tiny")
    assert params.stage_parameters("intervene", profile, "tiny")["prompt_limit"] == 2, "a limit of its own"
    activations = params.stage_parameters("activations", profile, "tiny", variant="dpo")
    assert activations["prompt_limit"] == 4 and activations["languages"] == profile.languages
    assert params.stage_parameters("retrieval", profile, "tiny")["sentences"] == "project"


def test_a_stage_of_many_languages_takes_those_of_the_profile(checkout):
    drawn = params.stage_parameters("generate", params.load_profile("tiny"), "tiny", variant="dpo")
    assert (drawn["n"], drawn["variant"], drawn["prompt_limit"]) == (3, "dpo", 4), "all from the profile"
    settings = params.GenerateParameters.model_validate(drawn)
    assert params.languages_of_run(settings) == ["de", "en", "ja"]
    assert params.languages_of_run(settings.model_copy(update={"languages": []})) == ["de", "en", "ja"]
    with pytest.raises(UserError, match="does not list 'sv'"):
        params.languages_of_run(settings.model_copy(update={"languages": ["en", "sv"]}))


def test_the_section_evaluate_holds_the_settings_of_two_stages(checkout):
    """Scoring, which loads models, and evaluating, which reads scores."""
    rewrite(checkout / "params/profiles/tiny.yaml", evaluate={"judge": "none", "bootstrap_samples": 7})
    profile = params.load_profile("tiny")
    scored = params.stage_parameters("score", profile, "tiny", variant="dpo")
    assert scored["judge"] == "none" and "bootstrap_samples" not in scored
    evaluated = params.stage_parameters("evaluate", profile, "tiny", variant="dpo", lang="de")
    assert evaluated["bootstrap_samples"] == 7 and "judge" not in evaluated
    rewrite(checkout / "params/profiles/tiny.yaml", evaluate={"juge": "none"})
    with pytest.raises(UserError, match="unknown key 'juge'; did you mean 'judge'"):
        params.load_profile("tiny")


def test_a_mistake_in_a_model_file_is_named(checkout):
    rewrite(checkout / "params/models/tiny.yaml", licnce="x")
    with pytest.raises(UserError, match=r"params/models/tiny.yaml: unknown key 'licnce'; did you mean 'licence'"):
        params.load_model("tiny")
    rewrite(checkout / "params/models/tiny.yaml", use="hub")
    (checkout / "params/models/other.yaml").write_text("title: x\nuse: hub\nlicence: x\n")
    with pytest.raises(UserError, match="'use: hub' needs the key 'hub'"):
        params.load_model("other")


def test_yaml_syntax_and_double_keys_name_the_line(checkout):
    file = checkout / "params/profiles/tiny.yaml"
    file.write_text("title: a\ntitle: b\n")
    with pytest.raises(UserError, match=r"tiny.yaml:2: .*'title' is given twice"):
        params.load_profile("tiny")
    file.write_text("a: &a {title: x}\nb: {<<: *a, title: y}\n")
    assert params.read_yaml(file)["b"] == {"title": "y"}, "what an anchor brings may be given again"
    file.write_text("title: [a\nmodels: b\n")
    with pytest.raises(UserError, match=r"tiny.yaml:\d+: not valid YAML"):
        params.load_profile("tiny")


def test_unknown_profile_and_model_name_the_nearest(checkout):
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        params.load_profile("tyny")
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        params.load_model("tinny")


def test_hub_id_and_folder_stand_for_a_model_file(checkout, tiny_checkpoints):
    assert params.load_model("owner/some-model").name == "owner--some-model"
    assert params.load_model("owner/some-model").hub == "owner/some-model"
    assert params.load_model(str(tiny_checkpoints["gpt2"])).path == str(tiny_checkpoints["gpt2"])
    (checkout / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        params.load_model(str(checkout / "empty"))


def test_languages_are_kept_in_the_papers_order(checkout):
    assert params.load_profile("tiny").languages == ["de", "en", "ja"]
    assert TINY_PROFILE["languages"] == ["en", "de", "ja"]


def test_a_notebook_refuses_a_parameter_it_does_not_have(checkout):
    with pytest.raises(UserError, match="no parameter 'tempratur'; did you mean 'temperature'"):
        begin("generate", {"tempratur": 1.0, "__name__": "__main__", "In": []})
    with pytest.raises(UserError, match="an import takes the name of the parameter 'seed'"):
        begin("generate", {"seed": max})
    with pytest.raises(UserError, match="lang: unknown language 'dee'"):
        begin("evaluate", {"lang": "dee"})
    with pytest.raises(UserError, match="languages: unknown language 'dee'"):
        begin("generate", {"languages": ["de", "dee"]})
    settings, stage = begin("generate", {"languages": "de", "model": "tiny"})
    assert settings.languages == ["de"], "as `papermill -p languages de` gives it"
    assert stage.folder == checkout / "runs/manual/tiny/base/generate"
    settings, stage = begin("evaluate", {"lang": "de", "model": "tiny"})
    assert stage.folder == checkout / "runs/manual/tiny/base/de/evaluate"


def test_nearest_lists_what_is_valid_when_nothing_is_near():
    assert nearest("qqq", ["a", "b"]) == "; valid are: a, b"
    assert nearest("aa", []) == ""
