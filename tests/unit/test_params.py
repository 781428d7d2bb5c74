"""Parameters: what is valid, what is refused, and in which words."""

from __future__ import annotations

import ast
import json

import nbformat
import pytest
import yaml
from snakemake.api import SnakemakeApi
from snakemake.iocontainers import Wildcards

from polydetox import preflight
from polydetox.core import params, yaml_files
from polydetox.core.errors import UserError, nearest
from polydetox.core.notebook import begin
from polydetox.core.parameters import declaration, notebook_file, parameters_cell
from polydetox.workflow import FIRST, load
from tiny import CHECKOUT, TINY_PROFILE

# A variant that samples after a request for politeness.
STEERED = {"pairs": "on-policy", "ablation": "decoding", "tuning": "none", "generate": {"experts": ["a", "anti"]}}
ANTI = {"pairs": "on-policy", "ablation": "placebo", "dpo": {"labels": "swapped"}}
PREFIXED = {"pairs": "on-policy", "ablation": "prompting", "generate": {"prefix": "english"}}


def resolved(profile, stage, **wildcards):
    """All parameters of one job of a profile."""
    return load(profile).resolved(stage, **wildcards)


def rewrite(file, **changes):
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | changes))


def test_every_shipped_file_is_valid():
    for name in params.names("model"):
        assert params.load_model(name).title
    for name in params.names("profile"):
        run = load(name)
        for stage, *of in run.jobs:
            if stage == "generate":
                assert run.resolved(stage, **dict(of))["max_new_tokens"] == 20


def test_paper_profile_has_the_papers_settings():
    full = resolved("paper", "dpo", model="mgpt", variant="dpo")
    assert (full["method"], full["learning_rate"], full["batch_size"], full["epochs"]) == ("full", 1e-5, 4, 5)
    # The paper says 0.05 of weight decay; its code has none.
    assert (full["beta"], full["warmup_steps"], full["weight_decay"], full["max_grad_norm"]) == (0.1, 150, 0.0, 10)
    small = resolved("paper", "dpo", model="llama-2-7b", variant="dpo")
    assert (small["method"], small["batch_size"], small["gradient_accumulation_steps"]) == ("qlora", 1, 4)
    assert (small["lora_rank"], small["lora_alpha"], small["lora_dropout"], small["epochs"]) == (64, 16, 0.05, 20)
    drawn = resolved("paper", "generate", model="mgpt", variant="base")
    assert (drawn["n"], drawn["temperature"], drawn["top_p"]) == (25, 0.9, 0.8)


def test_published_checkpoint_is_not_trained():
    assert params.variants_of(params.load_profile("paper"), "bloom-1b7-detox") == ["base", "published"]


@pytest.mark.parametrize("notebook", sorted((CHECKOUT / "notebooks").rglob("*.ipynb")), ids=lambda file: file.stem)
def test_a_notebook_declares_its_parameters_with_type_default_and_comment(notebook):
    """One line or more each; the defaults are valid as they stand."""
    (cell,) = [cell for cell in nbformat.read(notebook, as_version=4).cells
               if "parameters" in cell.metadata.get("tags", [])]  # fmt: skip
    lines = [node for node in ast.parse(cell.source).body if not isinstance(node, ast.ImportFrom)]
    assert all(isinstance(node, ast.AnnAssign) and node.value is not None for node in lines)
    declared = declaration(notebook.stem)
    assert [node.target.id for node in lines] == list(declared.model_fields)
    assert "output_folder" in declared.model_fields
    assert declared().model_dump(), "valid without any parameter"


def test_a_later_source_wins(checkout):
    file = checkout / "params/models/tiny.yaml"
    rewrite(file, generate={"n": 7, "top_k": 5})
    assert resolved("tiny", "generate", model="tiny", variant="base")["n"] == 3
    assert resolved("tiny", "generate", model="tiny", variant="base")["top_k"] == 5
    assert resolved("tiny", "dpo", model="tiny", variant="dpo-lora")["method"] == "lora"
    assert resolved("tiny", "dpo", model="tiny", variant="dpo")["method"] == "full"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"langages": []}, ["params/profiles/tiny.yaml", "'langages'", "'languages'"]),
        ({"languages": ["en", "dd"]}, ["params/profiles/tiny.yaml", "languages", "'dd'"]),
        ({"first": ["en", "dd"]}, ["params/profiles/tiny.yaml", "first", "'dd'"]),
        ({"first": ["en", "sv"]}, ["params/profiles/tiny.yaml: first:", "does not list sv", "remove it"]),
        ({"more_prompts": {"first": {"source": "project"}}}, ["more_prompts", "'first'"]),
        ({"generate": {"temprature": 1}}, ["params/profiles/tiny.yaml", "generate", "'temprature'", "'temperature'"]),
        ({"generate": {"lang": "en"}}, ["generate", "'lang'"]),
        ({"generate": {"top_p": 1.5}}, ["generate", "top_p", "1.5"]),
        ({"models": ["tny"]}, ["params/profiles/tiny.yaml", "'tny'", "'tiny'"]),
        ({"pairs": {"onpolicy": {}}}, ["pairs", "onpolicy", "on-policy"]),
        ({"variants": {"base": {"pairs": "on-policy"}}}, ["variants", "'base'"]),
        ({"variants": {"a": {"pairs": "rtp-lx"}}}, ["variant 'a'", "rtp-lx"]),
        ({"variants": {"a": {"pairs": "on-policy", "dpo": {"bta": 1}}}}, ["variants.a.dpo", "'bta'", "'beta'"]),
        ({"prompts": {"source": "rtplx"}}, ["prompts.source", "'rtplx'", "rtp-lx"]),
        ({"mechanism": {"probe": {"epoch_": 3}}}, ["mechanism.probe", "'epoch_'", "'epoch'"]),
        ({"mechanism": {"intervene": {"offsets": [-1.0]}}}, ["mechanism.intervene", "0 among them"]),
        ({"mechanism": {"probe": {"prompt_limit": 3}}}, ["unknown key 'prompt_limit'"]),
        ({"mechanism": {"probe": {"labels": {1: "bad"}}}}, ["mechanism.probe", "labels", "toxic, neutral, skipped"]),
        ({"alignment": {"retrieval": {"sentences": "projekt"}}}, ["alignment.retrieval", "'project'"]),
        ({"variants": {}}, ["variants: this key is required", "'control'"]),
        (
            {"variants": {}, "control": {"algorithms": {"plain": {"algorithm": "plain"}}}, "agreement": {}},
            ["agreement: is about the ways of tuning"],
        ),
        ({"models": []}, ["models", "unless the profile has a 'world'"]),
        ({"world": {"sizes": {"M": {"hidden": 32, "layers": 1}}, "alignments": [0], "seeds": [0]}}, ["'M'"]),
        ({"world": {"sizes": {"m": {"hidden": 33, "layers": 1}}, "alignments": [0], "seeds": [0]}}, ["hidden"]),
        ({"world": {"sizes": {"m": {"hidden": 32, "layers": 1}}, "alignments": [1.5], "seeds": [0]}}, ["alignments"]),
        ({"world": {"sizes": {"m": {"hidden": 32, "layers": 1}}, "alignments": [0.5, 0.501], "seeds": [0]}}, ["twice"]),
        ({"variants": {"a": {"pairs": "on-policy", "languages": ["de"]}}}, ["variants.a", "'ablation'"]),
        (
            {"variants": {"a": {"pairs": "on-policy", "generate": {"n": 5}}}},
            ["variants.a", "'generate' are for a variant with 'ablation'", "set them for the whole profile"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy", "evaluate": {"threshold": 0.3}}}},
            ["variants.a", "'evaluate' is for the whole profile"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {**ANTI, "evaluate": {"reference_model": "none"}}}},
            ["variants.b", "'evaluate' is for the whole profile"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {"pairs": "on-policy", "ablation": "seed"}}},
            ["variants.b", "'dpo: seed:'"],
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
        ({"variants": {"a": {"pairs": "on-policy", "tuning": "none"}}}, ["variants.a", "'ablation: prompting'"]),
        (
            {"variants": {"a": {"pairs": "on-policy", "ablation": "prompting", "tuning": "none"}}},
            ["variants.a", "'generate: prefix:'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {**STEERED, "generate": {"experts": ["a"]}}}},
            ["variants.b", "experts", "an expert and an anti-expert", "['a']"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "anti": ANTI, "b": {**STEERED, "tuning": "dpo"}}},
            ["variants.b", "'generate: experts:'", "'tuning: none'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {**STEERED, "generate": {"alpha": 1.0}}}},
            ["variants.b", "'generate: experts:'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": STEERED}},
            ["variant 'b'", "generate: experts: 'anti' is no tuned variant", "use two of a"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "anti": {**ANTI, "optional": True}, "b": STEERED}},
            ["variant 'b'", "generate: experts: 'anti'"],
        ),
        ({"generate": {"experts": ["a", "b"]}}, ["generate: experts:", "'ablation: decoding'"]),
        ({"generate": {"prefix": "englsh"}}, ["generate", "prefix", "'englsh'", "'english'"]),
        ({"variants": {"a": {"pairs": "on-policy", "ablation": "sead"}}}, ["variants.a.ablation", "'sead'", "'seed'"]),
        (
            {"variants": {"a": {"pairs": "on-policy", "tuning": "profs", "dpo": {"seed": 1}}}},
            ["variants.a", "'dpo' has settings of another tuning", "'tuning: profs'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {"pairs": "on-policy", "ablation": "tuning"}}},
            ["variants.b", "needs 'tuning: profs'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy", "tuning": "none", "ablation": "tuning"}}},
            ["variants.a", "needs 'tuning: profs'"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {**PREFIXED, "tuning": "profs"}}},
            ["variants.b", "'tuning: profs'", "two things would differ"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {**PREFIXED, "tuning": "none", "dpo": {"seed": 1}}}},
            ["variants.b", "'dpo' has settings of another tuning", "'tuning: none'"],
        ),
        (
            {
                "variants": {
                    "a": {"pairs": "on-policy", "tuning": "profs"},
                    "b": {"pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 1}},
                }
            },
            ["variant 'b'", "is tuned with DPO"],
        ),
        (
            {"variants": {"a": {"pairs": "on-policy"}, "b": {"pairs": "on-policy", "ablation": "placebo"}}},
            ["variants.b", "an ablation of the placebo needs 'dpo: labels:'"],
        ),
        ({"more_prompts": {"generate": {"source": "project"}}}, ["more_prompts", "'generate'", "a stage's name"]),
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
    assert preflight.problems(load("tiny")) == []
    rewrite(
        checkout / "params/profiles/tiny.yaml",
        pairs={"toxicity-pairwise": {"folder": "$TOXICITY_PAIRWISE"}},
        variants={"dpo": {"pairs": "toxicity-pairwise"}},
        prompts={"source": "rtp-lx", "folder": "$RTP_LX"},
        alignment={"retrieval": {"folder": "/nowhere"}},
    )
    found = preflight.problems(load("tiny"))
    assert len(found) == 4, found
    assert "`polydetox data fetch rtp-lx`" in found[0] and "`polydetox data fetch toxicity-pairwise --from" in found[1]
    assert "mechanism: probe: texts: is needed" in found[2] and "/nowhere: no such folder" in found[3]
    with pytest.raises(UserError, match="RTP_LX is not set"):
        preflight.preflight(load("tiny"))
    data = [line.split(":")[0] for line in preflight.licences(params.load_profile("tiny"))]
    assert data == ["RTP-LX", "toxicity_pairwise"], "a local folder asks for nothing; the data have licences"
    assert "(not available)" in preflight.licences(params.load_profile("tiny"))[0]
    rewrite(checkout / "params/models/tiny.yaml", use="hub", hub="a/b", licence="Some licence")
    assert (
        preflight.licences(params.load_profile("tiny"))[0] == "Tiny: Some licence (revision not pinned)"
        and "HF_TOKEN is not set" in preflight.licences(params.load_profile("tiny"))[1]
    )
    rewrite(checkout / "params/models/tiny.yaml", use="package", package="weights")
    (packaged, data, *_) = preflight.licences(params.load_profile("tiny"))
    assert packaged == "Tiny: Some licence" and data.startswith("RTP-LX: "), "a package is pinned, and needs no token"
    control = {"algorithms": {"plain": {"algorithm": "plain"}}, "win_rate": {"judge": "owner/judge"}}
    rewrite(checkout / "params/profiles/tiny.yaml", control=control)
    assert "owner/judge: see the Hub (revision not pinned)" in preflight.licences(params.load_profile("tiny")), (
        "judges have licences too"
    )


def test_labelled_texts_are_read_before_anything_starts(checkout, tmp_path):
    file = tmp_path / "texts.csv"
    probe = {"texts": str(file)}
    rewrite(checkout / "params/profiles/tiny.yaml", mechanism={"probe": probe})
    file.write_text("text,label\na,0\nb,1\nc,-1\n")
    (found,) = preflight.problems(load("tiny"))
    assert f"{file}:3: label -1 (1 rows) is not one of 0, 1; say what each label means" in found
    file.write_text("text,label\na,1\nb,1\n")
    (found,) = preflight.problems(load("tiny"))
    assert found == f"{file}: all texts are toxic; give texts of both kinds, or say in 'labels' or 'label_threshold' " \
                    "which are toxic"  # fmt: skip
    file.write_text("text,label\na,4\nb,1\nc,-1\n")
    rewrite(
        checkout / "params/profiles/tiny.yaml",
        mechanism={"probe": probe | {"labels": {4: "toxic", 1: "neutral", -1: "skipped"}}},
    )
    assert preflight.problems(load("tiny")) == []


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
    drawn = resolved("tiny", "generate", model="tiny", variant="lr")
    assert (drawn["n"], drawn["prompt_limit"], drawn["languages"]) == (2, 3, ["de"])
    whole = resolved("tiny", "generate", model="tiny", variant="dpo")
    assert (whole["n"], whole["prompt_limit"], whole["languages"]) == (3, 4, ["de", "en", "ja"])
    assert params.languages_of(profile, "lr") == ["de"] and params.languages_of(profile, "dpo") == ["de", "en", "ja"]
    assert resolved("tiny", "dpo", model="tiny", variant="lr")["learning_rate"] == 1e-6
    assert profile.ablated_from(profile.variants["lr"]) == "dpo"


def test_a_variant_without_tuning_samples_from_the_base_model(checkout):
    polite = {"pairs": "on-policy", "tuning": "none", "ablation": "prompting", "generate": {"prefix": "english"}}
    rewrite(checkout / "params/profiles/tiny.yaml", variants={"dpo": {"pairs": "on-policy"}, "polite": polite})
    run = load("tiny")
    base, own = (run.resolved("generate", model="tiny", variant=variant) for variant in ("base", "polite"))
    assert (base["prefix"], own["prefix"]) == ("none", "english") and own["checkpoint"] == base["checkpoint"]
    assert run.resolved("trim", model="tiny")["prefixes"] == ["english"], "whose tokens stay in the vocabulary"
    stages = {job.stage for job in run.jobs.values() if job.wildcards.get("variant") == "polite"}
    assert stages == {"generate", "score", "evaluate"}


def test_experts_are_checkpoints_of_the_run(checkout):
    variants = {"a": {"pairs": "on-policy"}, "anti": ANTI, "steered": STEERED}
    rewrite(checkout / "params/profiles/tiny.yaml", variants=variants)
    run = load("tiny")
    base, own = (run.resolved("generate", model="tiny", variant=variant) for variant in ("base", "steered"))
    assert own["experts"] == [f"runs/tiny/tiny/{variant}/merge" for variant in ("a", "anti")] and not base["experts"]
    assert own["checkpoint"] == base["checkpoint"]
    assert "experts" not in run.jobs["generate", ("model", "tiny"), ("set", ""), ("variant", "base")].parameters
    assert preflight.problems(run) == []
    for wrong, said in (({"engine": "vllm"}, "engine: vllm"), ({"temperature": 0.0}, "temperature: 0")):
        steered = STEERED | {"generate": STEERED["generate"] | wrong}
        rewrite(checkout / "params/profiles/tiny.yaml", variants=variants | {"steered": steered})
        with pytest.raises(UserError, match=f"params/profiles/tiny.yaml: generate: {said}"):
            preflight.preflight(load("tiny"))


def test_pairs_of_one_style_stand_beside_those_that_are_not_matched(checkout):
    matched = {"pairs": "on-policy-matched", "ablation": "style"}
    pairs = {"on-policy": {"n": 4}, "on-policy-matched": {"n": 4, "match_style": True}}
    rewrite(checkout / "params/profiles/tiny.yaml", pairs=pairs, variants={"dpo": {"pairs": "on-policy"}, "m": matched})
    run, profile = load("tiny"), params.load_profile("tiny")
    assert profile.ablated_from(profile.variants["m"]) == "dpo"
    found = {kind: run.resolved("pairs", model="tiny", kind=kind) for kind in run.kinds("tiny")}
    assert {kind: (job["kind"], job["match_style"], job["evaluated"]) for kind, job in found.items()} == {
        "on-policy": ("on-policy", False, []), "on-policy-matched": ("on-policy", True, [])}  # fmt: skip
    assert preflight.problems(run) == []


def test_pairs_that_another_scorer_ranks_name_it(checkout):
    crossed = {"pairs": "on-policy-use", "ablation": "ranking"}
    pairs = {"on-policy": {"n": 4}, "on-policy-use": {"n": 4, "scorer": "use"}}
    profile = checkout / "params/profiles/tiny.yaml"
    rewrite(profile, pairs=pairs, variants={"dpo": {"pairs": "on-policy"}, "c": crossed})
    run = load("tiny")
    assert run.profile.ablated_from(run.profile.variants["c"]) == "dpo"
    jobs = {kind: run.resolved("pairs", model="tiny", kind=kind) for kind in run.kinds("tiny")}
    assert {kind: (job["kind"], job["scorer"]) for kind, job in jobs.items()} == {
        "on-policy": ("on-policy", "embedded"), "on-policy-use": ("on-policy", "use")}  # fmt: skip
    assert preflight.problems(run) == []
    # A second scorer may lack a language, but not the first one.
    rewrite(
        profile, languages=["en", "hi"], agreement={"scorers": ["embedded", "use"]}, evaluate={"second_scorer": "use"}
    )
    assert preflight.problems(load("tiny")) == []
    rewrite(profile, evaluate={"scorer": "use"})
    assert any("scorer 'use' does not know hi" in problem for problem in preflight.problems(load("tiny")))
    rewrite(profile, pairs=pairs | {"on-policy-use": {"n": 4}})
    with pytest.raises(UserError, match="pairs: on-policy-use: scorer: is needed"):
        load("tiny")


def test_optional_data_are_left_out_with_a_word_and_used_where_they_are(checkout, monkeypatch):
    monkeypatch.delenv("RTP_LX", raising=False)
    monkeypatch.setenv("POLYDETOX_DATA", str(checkout / "nothing"))
    rewrite(checkout / "params/profiles/tiny.yaml", **FULL)
    preflight.preflight(load("tiny"))
    without = load("tiny")
    assert without.variants("tiny") == ["base", "dpo", "lr"] and without.compared("tiny") == ["base", "dpo"]
    assert not without.prompt_sets and without.kinds("tiny") == ["on-policy"]
    assert not any("rtp-lx" in result or "/other/" in result for result in without.manifests())
    said = preflight.skipped(load("tiny"))
    assert len(said) == 2 and "variant other" in said[0] and "prompts rtp-lx" in said[1]

    folder = checkout / "rtp"
    folder.mkdir()
    rows = [{"Index": row, "Prompt": f"p{row}", "Completion": f"bad {row}", "BenignCompletion": f"good {row}"}
            for row in range(6)]  # fmt: skip
    for locale in ("EN", "DE"):
        (folder / f"RTP_LX_{locale}.json").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setenv("RTP_LX", str(folder))
    preflight.preflight(load("tiny"))
    graph = load("tiny")
    assert graph.compared("tiny") == ["base", "dpo", "other"] and graph.prompt_sets == {"rtp-lx": ["de", "en"]}
    assert preflight.skipped(load("tiny")) == ["prompts rtp-lx: not available in ja"]
    results = graph.manifests()
    assert "runs/tiny/tiny/other/rtp-lx/evaluate/de/manifest.json" in results
    assert not any("/lr/rtp-lx/" in result or "/lr/evaluate/en" in result for result in results)
    more = resolved("tiny", "generate", model="tiny", variant="base", set="rtp-lx/")
    assert (more["prompts_source"], more["prompts_folder"], more["prompt_limit"]) == ("rtp-lx", "$RTP_LX", 2)
    evaluated = resolved("tiny", "evaluate", model="tiny", variant="base", lang="de", set="rtp-lx/")
    assert evaluated["scores"] == "runs/tiny/tiny/base/rtp-lx/score/scores.parquet"
    assert more["languages"] == ["de", "en"], "those that the set has"
    pairs = resolved("tiny", "pairs", model="tiny", kind="rtp-lx")
    assert pairs["held_out_prompts"] == 2, "what further prompts evaluate is not trained on"

    monkeypatch.setenv("RTP_LX", str(checkout / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        preflight.preflight(load("tiny"))


@pytest.mark.parametrize("languages", [["de", "fr"], ["en"]])
def test_the_synthetic_setting_needs_english_and_another_language(checkout, languages):
    world = {"sizes": {"s": {"hidden": 32, "layers": 1}}, "alignments": [0.5], "seeds": [0]}
    rewrite(checkout / "params/profiles/tiny.yaml", languages=languages, world=world)
    said = "params/profiles/tiny.yaml: languages: the synthetic setting aligns 'en' with others; list it and one more"
    assert said in preflight.problems(load("tiny"))


def test_the_corpus_of_control_is_told_every_evaluated_prompt(checkout):
    """No stage samples attribute control on a prompt that the corpus may hold."""
    control = {"algorithms": {"plain": {"algorithm": "plain"}}}

    def told(limit, **sections):
        prompts = {"source": "toxigen", "folder": "$TOXIGEN", "limit": limit}
        rewrite(checkout / "params/profiles/tiny.yaml", prompts=prompts, control=control | sections)
        values = resolved("tiny", "control_corpus", model="tiny")
        return values["prompts_source"], values["prompts_folder"], values["prompt_limit"]

    assert told(5) == ("toxigen", "$TOXIGEN", 5)
    assert told(None) == ("toxigen", "$TOXIGEN", None)
    assert told(5, constrained_decode={"prompt_limit": 3}, jigsaw_classify={"prompt_limit": 8})[2] == 8
    assert told(5, constrained_decode={"prompt_limit": None})[2] is None
    assert told(5, corpus={"source": "model"}) == ("project", "", None), "which reads no statements"


def test_sections_of_the_mechanism_reach_their_stages(checkout):
    profile = params.load_profile("tiny")
    assert resolved("tiny", "intervene", model="tiny")["prompt_limit"] == 2, "a limit of its own"
    activations = resolved("tiny", "activations", model="tiny", variant="dpo")
    assert activations["prompt_limit"] == 4 and activations["languages"] == profile.languages
    assert resolved("tiny", "retrieval", model="tiny")["sentences"] == "project"
    assert resolved("tiny", "trim", model="tiny")["sentences"], "whose tokens stay in the vocabulary"


def test_a_published_checkpoint_is_compared_with_a_base_model_of_its_vocabulary(checkout):
    tiny = yaml.safe_load((checkout / "params/models/tiny.yaml").read_text())
    (checkout / "params/models/whole.yaml").write_text(yaml.safe_dump(tiny | {"tuned": {"hub": "owner/tuned"}}))
    rewrite(checkout / "params/profiles/tiny.yaml", models=["tiny", "whole"])
    run = load("tiny")
    assert run.resolved("generate", model="whole", variant="base")["checkpoint"] == "runs/checkpoints/whole"
    assert run.resolved("merge", model="whole", variant="published")["checkpoint"] == "runs/checkpoints/whole"
    assert run.resolved("generate", model="tiny", variant="base")["checkpoint"] == "runs/tiny/tiny/trim"
    assert [job.wildcards["model"] for job in run.jobs.values() if job.stage == "trim"] == ["tiny"]


def test_a_stage_of_many_languages_takes_those_of_the_profile(checkout):
    job = load("tiny").jobs["generate", ("model", "tiny"), ("set", ""), ("variant", "dpo")]
    assert job.folder == "runs/tiny/tiny/dpo/generate" and job.notebook == "notebooks/evaluation/generate.ipynb"
    assert job.parameters["checkpoint"] == "runs/tiny/tiny/dpo/merge", "a path, and no name to look up"
    assert (job.parameters["n"], job.parameters["prompt_limit"]) == (3, 4)
    assert job.parameters["languages"] == ["de", "en", "ja"]


def test_the_early_site_is_about_the_first_languages_and_one_way_of_tuning(checkout):
    without = json.loads(load("tiny").record())
    rewrite(checkout / "params/profiles/tiny.yaml", first=["en", "de"])
    run = load("tiny")
    whole, early = (json.loads(run.record(part)) for part in ("", FIRST))
    assert whole.pop("profile") == without.pop("profile") | {"first": ["de", "en"]} and whole == without
    assert early["profile"]["languages"] == ["de", "en"] and list(early["profile"]["variants"]) == ["dpo"]
    folders = [job["folder"].removeprefix("runs/tiny/tiny/") for job in early["jobs"]]
    first = [f"{variant}/first/{stage}" for stage in ("generate", "score", "evaluate/de", "evaluate/en")
             for variant in ("base", "dpo")]  # fmt: skip
    assert folders[:5] == ["runs/checkpoints/tiny", "trim", "pairs/on-policy", "dpo/dpo", "dpo/merge"]
    assert set(folders[5:]) == set(first) and len(folders) == 5 + len(first)
    assert {job["wildcards"].get("set", "") for job in early["jobs"]} == {""}
    job = run.jobs["generate", ("model", "tiny"), ("set", FIRST), ("variant", "dpo")]
    assert job.parameters["languages"] == ["de", "en"], "of all prompts"
    assert job.parameters["parts"] == "runs/tiny/tiny/dpo/generate/parts", "where the job of all languages finds them"
    assert not any(f"/{FIRST}" in file for file in run.manifests()), "the report waits for none of them"


def test_what_the_early_site_waits_for_comes_before_everything_else(checkout, monkeypatch):
    rewrite(checkout / "params/profiles/tiny.yaml", first=["en", "de"])
    loaded, workflow = [], SnakemakeApi.workflow
    monkeypatch.setattr(SnakemakeApi, "workflow", lambda *_, **how: loaded.append(workflow(*_, **how)) or loaded[-1])
    run = load("tiny")
    rules = {rule.name: rule for rule in loaded[0]._workflow.rules}

    def priority(job):
        return rules[job.stage].expand_priority(Wildcards(fromdict=job.wildcards), [], 1)

    soon = [job for job in run.jobs.values() if priority(job) in (9, 30)]
    assert soon == run.reported(FIRST) and len(soon) == 13
    assert [job.stage for job in soon if priority(job) == 30] == ["dpo"], "the stage that takes both cores"
    sections = [rules["summary"].expand_priority(Wildcards(fromdict={"part": part}), [], 1) for part in (FIRST, "")]
    assert sections == [9, 0]
    address = checkout / "runs/tiny/first/site/index.html"
    assert rules["render_first"].message == f"the report on de en, to read while the rest runs: {address}"
    assert rules["render_first"].priority == 9 and str(address.relative_to(checkout)) in rules["render_first"].output


def test_what_the_workflow_decides_no_section_may_say(checkout):
    rewrite(checkout / "params/profiles/tiny.yaml", generate={"languages": ["de"]})
    with pytest.raises(UserError, match=r"tiny.yaml: generate: unknown key 'languages': the workflow decides it"):
        load("tiny")


def test_the_section_evaluate_holds_the_settings_of_two_stages(checkout):
    """Scoring, which loads models, and evaluating, which reads scores."""
    rewrite(checkout / "params/profiles/tiny.yaml", evaluate={"reference_model": "none", "bootstrap_samples": 7})
    scored = resolved("tiny", "score", model="tiny", variant="dpo")
    assert scored["reference_model"] == "" and "bootstrap_samples" not in scored
    evaluated = resolved("tiny", "evaluate", model="tiny", variant="dpo", lang="de")
    assert evaluated["bootstrap_samples"] == 7 and "reference_model" not in evaluated
    rewrite(checkout / "params/profiles/tiny.yaml", evaluate={"reference_modle": "none"})
    with pytest.raises(UserError, match="unknown key 'reference_modle'; did you mean 'reference_model'"):
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
    assert yaml_files.read_yaml(file)["b"] == {"title": "y"}, "what an anchor brings may be given again"
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


def cell(stage, **changes):
    """The variables of a notebook that has run its parameters cell."""
    namespace = {}
    exec(parameters_cell(notebook_file(stage)), namespace)
    return namespace | changes


def test_a_notebook_refuses_a_parameter_it_does_not_have(checkout):
    with pytest.raises(UserError, match="no parameter 'tempratur'; did you mean 'temperature'"):
        begin("generate", cell("generate", tempratur=1.0, In=[]))
    with pytest.raises(UserError, match="an import takes the name of the parameter 'seed'"):
        begin("generate", cell("generate", seed=max))
    with pytest.raises(UserError, match="lang: unknown language 'dee'"):
        begin("evaluate", cell("evaluate", lang="dee"))
    with pytest.raises(UserError, match=r"languages.*unknown language 'dee'"):
        begin("generate", cell("generate", languages=["de", "dee"]))
    settings, stage = begin("generate", cell("generate", languages="de"))
    assert settings.languages == ["de"], "as `papermill -p languages de` gives it"
    assert stage.folder == checkout / "runs/manual/generate"
    settings, stage = begin("generate", cell("generate", output_folder=str(checkout / "mine")))
    assert stage.folder == checkout / "mine"


def test_a_copy_of_a_notebook_may_have_parameters_of_its_own(checkout):
    namespace = cell("generate")
    exec("steps: int = 3", namespace)
    assert begin("generate", namespace | {"steps": "4"})[0].steps == 4


def test_nearest_lists_what_is_valid_when_nothing_is_near():
    assert nearest("qqq", ["a", "b"]) == "; valid are: a, b"
    assert nearest("aa", []) == ""


@pytest.mark.parametrize(("written", "words"), [
    ("prompts: {source: project, limit: yes}", "limit: true is no number"),
    ("prompts: {source: project, limit: 010}", r"tiny.yaml:\d+: not valid YAML: 010 is not the number that it looks"),
    ("prompts: {source: project, limit: 1:30}", "1:30 is not the number that it looks like"),
    ("dpo: {learning_rate: on}", "dpo: learning_rate: true is no number"),
    ("dpo: {learning_rate: .inf}", "dpo: learning_rate: Input should be a finite number"),
    ("dpo: {seed: 20261130120000}", "dpo: seed: 20261130120000 is too large; give one below 4294967296"),
    ("dpo: {seed: '20261130120000'}", "dpo: seed: 20261130120000 is too large"),
    ("title: !!int [1]", "not valid YAML"),
    ("title: 2026-02-30", "not valid YAML: ValueError: day is out of range"),
    ("title: !!int abc", "not valid YAML: ValueError"),
    ("title: " + "[" * 3000, "not valid YAML"),
])  # fmt: skip
def test_what_yaml_would_guess_is_an_error(checkout, written, words):
    file = checkout / "params/profiles/tiny.yaml"
    key = written.partition(":")[0]
    kept = {name: value for name, value in yaml.safe_load(file.read_text()).items() if name != key}
    file.write_text(yaml.safe_dump(kept) + written + "\n")
    with pytest.raises(UserError, match=words):
        params.load_profile("tiny")


def test_results_have_a_folder_of_their_own(checkout):
    for kind, name in (("model", "book"), ("model", "site"), ("profile", "checkpoints"), ("profile", "cache")):
        source = checkout / f"params/{kind}s/tiny.yaml"
        source.with_name(f"{name}.yaml").write_text(source.read_text())
        with pytest.raises(
            UserError, match=rf"{name}\.yaml: the name of a {kind} .* and is not .*{name}.*; rename the file"
        ):
            (params.load_model if kind == "model" else params.load_profile)(name)
    for model in ("~nosuch/model", "x" * 300):
        with pytest.raises(UserError, match="no such"):
            params.load_model(model)


@pytest.mark.parametrize(("evaluate", "agreement", "threshold"), [
    ({"threshold": 0.7}, {}, 0.7),
    ({}, {}, None),
    ({"threshold": 0.7}, {"threshold": 0.4}, 0.4),
    ({"scorer": "use", "threshold": 0.7}, {"scorers": ["embedded", "use"]}, None),
])  # fmt: skip
def test_the_threshold_of_the_evaluation_is_that_of_the_agreement(checkout, evaluate, agreement, threshold):
    file = checkout / "params/profiles/tiny.yaml"
    content = yaml.safe_load(file.read_text()) | {"evaluate": evaluate, "agreement": agreement}
    file.write_text(yaml.safe_dump(content))
    (job,) = (job for job in load("tiny").jobs.values() if job.stage == "agreement")
    assert job.parameters.get("threshold") == threshold
