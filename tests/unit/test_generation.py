"""The transformers engine on three families, and the resumable run over a table of prompts."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import torch

from notebook_cells import run_cells
from polydetox.core.errors import UserError
from polydetox.data.prompts import load_prompts, politeness
from polydetox.generation import attention, engines
from polydetox.generation.engines import Sampling, TransformersEngine, generate
from tiny import FAMILIES, tiny_model

PROMPTS = ["The neighbours", "La capital de Francia es una", "Der", "今日はとても"]
IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_those_of_generate(tiny_checkpoints, family):
    engine = TransformersEngine(tiny_checkpoints[family], "float32")
    drawn = engine.sample(IDS, PROMPTS, Sampling(n=2, temperature=0.0, max_new_tokens=8))
    for prompt, continuations in zip(PROMPTS, drawn, strict=True):
        inputs = engine.tokenizer(prompt, return_tensors="pt")
        expected = engine.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        tokens = expected.tolist()
        tokens = tokens[: tokens.index(1)] if 1 in tokens else tokens
        assert [continuation.tokens for continuation in continuations] == [tokens, tokens]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_do_not_depend_on_the_batch(tiny_checkpoints, family):
    engine = TransformersEngine(tiny_checkpoints[family], "float32")
    sampling = Sampling(n=3, max_new_tokens=8, seed=5)
    together = engine.sample(IDS, PROMPTS, sampling)
    alone = [
        engine.sample([identifier], [prompt], sampling)[0] for identifier, prompt in zip(IDS, PROMPTS, strict=True)
    ]
    assert together == alone
    assert len({tuple(continuation.tokens) for row in together for continuation in row}) > 3
    assert engine.sample(IDS, PROMPTS, Sampling(n=3, max_new_tokens=8, seed=6)) != together


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_several_lines_is_continued_after_its_open_hyphen(tiny_checkpoints, tmp_path, family):
    """ToxiGen's prompts are lists that end in a hyphen: what is scored is what follows it, and nothing of the list."""
    tokenizer = engines.load_tokenizer(tiny_checkpoints[family])
    prompt, follows = "- the first\n- a second one\n-", " the house\n- and"
    prefix, whole = (tokenizer(text)["input_ids"] for text in (prompt, prompt + follows))
    assert whole[: len(prefix)] == prefix and tokenizer.decode(prefix, skip_special_tokens=True) == prompt
    assert engines.continuation_text(tokenizer, prefix, whole[len(prefix) :]) == follows
    prompts = pd.DataFrame({"prompt_id": ["a"], "prompt": [prompt]})
    table = generate(tiny_checkpoints[family], prompts, Sampling(n=4, max_new_tokens=8), tmp_path, dtype="float32",
                     engine="transformers")  # fmt: skip
    assert set(table["prompt"]) == {prompt} and not table["continuation"].str.contains("first").any()


def test_a_request_for_politeness_is_read_and_is_no_part_of_the_prompt(tiny_checkpoints, tmp_path):
    weights, few = tiny_checkpoints["llama"], {"n": 2, "max_new_tokens": 6}
    given = {"checkpoint": str(weights), "dtype": "float32", "languages": ["de"], "prompts_source": "project",
             "prompt_limit": 3, "engine": "transformers", **few}  # fmt: skip
    tables = {}
    for prefix in ("none", "english", "own-language"):
        space = run_cells("generate", prefix=prefix, output_folder=str(tmp_path / prefix), **given)
        tables[prefix] = space["continuations"]
    plain, _ = load_prompts("project", "de", limit=3)
    for prefix, table in tables.items():
        assert list(table["prompt"].unique()) == list(plain["prompt"]), "as scores and fluency see it"
        before = "" if prefix == "none" else politeness(prefix, "de")
        asked = plain.assign(prompt=before + plain["prompt"])
        expected = generate(weights, asked, Sampling(**few), tmp_path / "own" / prefix, dtype="float32",
                            engine="transformers")  # fmt: skip
        assert table["continuation"].tolist() == expected["continuation"].tolist()
    assert len({tuple(table["continuation"]) for table in tables.values()}) == 3, "the model has read it"


def fresh(weights, family, folder, seed):
    """Another model of the family, with the tokenizer of a checkpoint."""
    tokenizer = engines.load_tokenizer(weights)
    tiny_model(family, len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_steer_what_is_sampled_and_none_where_they_agree(tiny_checkpoints, tmp_path, family):
    """With continuations that end early, whose rows leave all three caches."""
    base, sampling = tiny_checkpoints[family], Sampling(n=5, top_p=0.95, max_new_tokens=8)
    one, other = (fresh(base, family, tmp_path / str(seed), seed) for seed in (1, 2))

    def sampled(*options):
        engine = TransformersEngine(base, "float32", *options)
        engine._stop = frozenset(range(0, 900, 9))
        return engine.sample(IDS, PROMPTS, sampling)

    plain, steered = sampled(), sampled([one, other], 1.0)
    assert sampled([one, other], 0.0) == plain == sampled([one, one], 2.0) != steered
    lengths = [len(continuation.tokens) for row in steered for continuation in row]
    assert len(set(lengths)) > 3, "some continuations ended early"
    # Each token again, from whole texts read without a cache.
    models = [engines.load_causal_lm(weights, torch.float32) for weights in (base, one, other)]
    tokenizer, stop = engines.load_tokenizer(base), frozenset(range(0, 900, 9))
    for identifier, prompt, row in zip(IDS, PROMPTS, steered, strict=True):
        uniform = engines.uniforms(sampling.seed, identifier, 5, 8)
        for number, (tokens, truncated) in enumerate(row):
            for step in range(len(tokens) + (not truncated)):
                ids = [*tokenizer(prompt)["input_ids"], *tokens[:step]]
                z, expert, anti = (engines.next_logits(model, ids)[-1:] for model in models)
                token = engines.sample(z, uniform[number, step : step + 1], 0.9, 0.95, 0, expert - anti).item()
                assert token == tokens[step] if step < len(tokens) else token in stop


def test_experts_of_a_notebook_are_checked_and_change_the_samples(tiny_checkpoints, tmp_path):
    weights = tiny_checkpoints["llama"]
    expert = fresh(weights, "llama", tmp_path / "expert", 1)
    given = {"checkpoint": str(weights), "dtype": "float32", "languages": ["de"], "prompts_source": "project",
             "prompt_limit": 3, "n": 2, "max_new_tokens": 6}  # fmt: skip

    def run(name, **more):
        space = run_cells("generate", output_folder=str(tmp_path / name), **given, **more)
        return space["continuations"]["continuation"].tolist()

    both = {"experts": [str(expert), str(weights)]}
    plain = run("plain")
    assert run("still", **both, alpha=0.0) == plain != run("steered", **both, alpha=2.0)
    with pytest.raises(UserError, match="experts: give an expert and an anti-expert"):
        run("one", experts=[str(expert)])
    with pytest.raises(UserError, match=r"generate: engine: vllm reads one model.*engine: transformers"):
        run("vllm", **both, engine="vllm")
    with pytest.raises(UserError, match=r"generate: temperature: 0 .*give a temperature above 0"):
        run("greedy", **both, temperature=0.0)
    foreign = tmp_path / "foreign"
    shutil.copytree(expert, foreign)
    tokenizer = engines.load_tokenizer(foreign)
    tokenizer.add_tokens(["<another>"])
    tokenizer.save_pretrained(foreign)
    with pytest.raises(UserError, match=r"foreign has another vocabulary than .*tuned from the same model"):
        run("foreign", experts=[str(expert), str(foreign)])


def test_experts_do_not_go_through_generate(tiny_checkpoints, monkeypatch):
    monkeypatch.setattr(engines, "keeps_keys_and_values", lambda cache: False)
    base = tiny_checkpoints["gpt2"]
    with pytest.raises(UserError, match="sampling with experts with model type 'gpt2' is not exact"):
        TransformersEngine(base, "float32", [base, base], 1.0)


def tiny_of(family):
    """A tiny model of an architecture that only the engine's attention is tested on."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 900, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    configuration = {
        "gemma3": lambda: transformers.Gemma3TextConfig(**sizes, sliding_window=40, sliding_window_pattern=2),
        "mistral": lambda: transformers.MistralConfig(**sizes, sliding_window=None),
        "cohere": lambda: transformers.CohereConfig(**sizes, use_qk_norm=True),
        "qwen2": lambda: transformers.Qwen2Config(**sizes),
        "qwen3": lambda: transformers.Qwen3Config(**sizes),
        # Not a power of two: the slopes of BLOOM's heads are made of two series.
        "bloom-3-heads": lambda: transformers.BloomConfig(vocab_size=900, hidden_size=24, n_layer=2, n_head=3),
    }[family]()
    configuration.pad_token_id, configuration.eos_token_id, configuration.bos_token_id = 0, 1, 2
    model = transformers.AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    return model


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3", "mistral", "cohere", "qwen2", "qwen3", "bloom-3-heads"])
def test_sharing_the_prompts_cache_changes_no_token(tiny_checkpoints, tmp_path, monkeypatch, family):
    """Against transformers' own attention, with continuations that end early and leave the batch."""
    weights = tiny_checkpoints.get(family)
    if weights is None:
        weights = tmp_path
        tiny_of(family).save_pretrained(weights)
        engines.load_tokenizer(tiny_checkpoints["llama"]).save_pretrained(weights)
    engine = TransformersEngine(weights, "float32")
    assert attention.supports(engine.model, 30)
    sampling = Sampling(n=5, top_p=0.95, max_new_tokens=8)
    whole = engine.sample(IDS, PROMPTS, sampling)
    engine._stop = frozenset(range(0, 900, 9))
    shared = engine.sample(IDS, PROMPTS, sampling)
    monkeypatch.setattr(attention, "supports", lambda model, positions: False)
    assert shared == engine.sample(IDS, PROMPTS, sampling)
    # Nothing but the cut differs from continuations that all went on to the end.
    expected = [[engines._until_stop(one.tokens, engine._stop) for one in row] for row in whole]
    assert shared == expected and len({len(one.tokens) for row in shared for one in row}) > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_the_prompts_cache_keeps_bfloat16_logits(tiny_checkpoints, monkeypatch, family):
    """Over two steps, before the second of which some continuations leave."""
    monkeypatch.setattr(engines, "inference_dtype", lambda wanted: torch.bfloat16)
    engine = TransformersEngine(tiny_checkpoints[family], "bfloat16")
    rows = [engine.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]

    def logits() -> torch.Tensor:
        """After each of two given tokens; a third of the continuations end with the first."""
        found = []

        def choose(logits, slots, step):
            found.append(logits)
            return torch.where((slots % 3 == 0) & (step == 1), min(engine._stop), 300 + 100 * step + slots)

        with torch.inference_mode():
            engine._together(rows, 2, 3, choose)
        assert [len(step) for step in found] == [8, 8, 5]
        return torch.cat(found[1:])

    shared = logits()
    monkeypatch.setattr(attention, "supports", lambda model, positions: False)
    repeated = logits()
    assert shared.dtype == torch.bfloat16 and not torch.equal(shared, repeated)
    assert float((shared - repeated).abs().max()) < 0.03 * float(repeated.abs().max())


def test_a_window_shorter_than_the_text_keeps_transformers_attention():
    model = tiny_of("gemma3")
    assert attention.supports(model, 40) and not attention.supports(model, 41)


def test_end_of_sequence_ends_a_continuation():
    stop = frozenset({1})
    assert engines._until_stop([5, 6, 1, 7], stop) == engines.Continuation([5, 6], truncated=False)
    assert engines._until_stop([1, 7], stop) == engines.Continuation([], truncated=False)
    assert engines._until_stop([5, 6], stop) == engines.Continuation([5, 6], truncated=True)


def test_text_keeps_its_leading_space_and_drops_half_characters(tiny_checkpoints):
    tokenizer = engines.load_tokenizer(tiny_checkpoints["llama"])
    prefix = tokenizer("The neighbours")["input_ids"]
    whole = tokenizer("The neighbours are loud")["input_ids"]
    assert engines.continuation_text(tokenizer, prefix, whole[len(prefix) :]) == " are loud"
    half = tokenizer.convert_tokens_to_ids(["<0xE4>", "<0xBB>"])  # two of three bytes of a Chinese character
    assert engines.continuation_text(tokenizer, prefix, half) == ""


def table(prompts=PROMPTS, ids=IDS):
    return pd.DataFrame({"prompt_id": ids, "prompt": prompts})


def test_duplicate_prompts_stay_apart_and_duplicate_ids_are_refused(tiny_checkpoints, tmp_path):
    sampling = Sampling(n=2, max_new_tokens=4)
    result = generate(tiny_checkpoints["llama"], table(["Der", "Der"], ["x", "y"]), sampling, tmp_path / "p")
    assert list(result["prompt_id"]) == ["x", "x", "y", "y"] and list(result["sample"]) == [0, 1, 0, 1]
    assert list(result["continuation"][:2]) != list(result["continuation"][2:])
    with pytest.raises(UserError, match="prompt id 'x' is used twice"):
        generate(tiny_checkpoints["llama"], table(["Der", "Das"], ["x", "x"]), sampling, tmp_path / "p")


def test_a_stopped_run_goes_on_and_gives_the_same_table(tiny_checkpoints, tmp_path, monkeypatch):
    sampling, weights = Sampling(n=2, max_new_tokens=4), tiny_checkpoints["llama"]
    whole = generate(weights, table(), sampling, tmp_path / "whole", batch_size=2)
    assert list(whole["prompt_id"]) == [identifier for identifier in IDS for _ in range(2)]

    calls = []
    sample = TransformersEngine.sample

    def stop_after_two(self, ids, prompts, sampling):
        calls.append(list(ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(self, ids, prompts, sampling)

    monkeypatch.setattr(TransformersEngine, "sample", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        generate(weights, table(), sampling, tmp_path / "stopped", batch_size=2)
    resumed = generate(weights, table(), sampling, tmp_path / "stopped", batch_size=2)
    assert len(calls) == 5, "two batches before the stop, the one it hit, and the two that were left"
    pd.testing.assert_frame_equal(resumed, whole)

    # Another release of the engine's library does not finish what this one began, nor do other settings.
    generate(weights, table(), sampling, tmp_path / "stopped", batch_size=2)
    assert len(calls) == 5, "all batches are there"
    newer = engines.library_versions() | {"transformers": "99.0"}
    monkeypatch.setattr(engines, "library_versions", lambda: newer)
    generate(weights, table(), sampling, tmp_path / "stopped", batch_size=2)
    assert len(calls) == 9, "all four batches again"
    other = generate(weights, table(), Sampling(n=2, max_new_tokens=3), tmp_path / "stopped", batch_size=2)
    assert other["tokens"].max() == 3


def test_engine_that_is_missing_is_named():
    if engines.find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(UserError, match=r"pip install --no-deps -r requirements-gpu.txt"):
        engines.choose_engine("vllm")
    assert engines.choose_engine("auto") == "transformers"
