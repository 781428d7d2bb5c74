"""Texts that end with a special token, and texts of more tokens than a model has positions."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers.processors import ByteLevel, RobertaProcessing, Sequence, TemplateProcessing

from notebook_cells import make_trainer
from polydetox.core.artifacts import Stage, read_json
from polydetox.core.errors import UserError
from polydetox.generation.engines import Sampling, TransformersEngine, generate
from polydetox.mechanism.decoding import greedy
from polydetox.mechanism.representations import pooled
from polydetox.metrics.fluency import ReferenceModel
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from polydetox.models.decoders import next_logits
from polydetox.models.texts import Shortened, context_length, encode_prompts, shortened
from polydetox.models.tokenizers import affixes, leave_open
from tiny import TEXTS, tiny_model, tiny_tokenizer

LONG = "You silly person, stop changing my page! " * 20  # of GPT-2's 256 positions it takes more
SPECIAL = [("<bos>", 2), ("<eos>", 1)]
ENDING = TemplateProcessing(single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=SPECIAL)


# --- closing tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", [ENDING, Sequence([ByteLevel(trim_offsets=False), ENDING])])
def test_a_text_is_left_open_and_its_beginning_kept(processor):
    plain, ending = tiny_tokenizer(), tiny_tokenizer()
    ending.backend_tokenizer.post_processor = processor
    assert affixes(ending) == (1, 1) and affixes(plain) == (1, 0)
    leave_open(ending)
    assert affixes(ending) == (1, 0)
    assert ending(TEXTS)["input_ids"] == plain(TEXTS)["input_ids"]
    bare = tiny_tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=SPECIAL)
    leave_open(bare)
    assert bare("A b")["input_ids"] == plain("A b")["input_ids"][1:]


def test_a_tokenizer_that_cannot_be_left_open_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = RobertaProcessing(("<eos>", 1), ("<bos>", 2))
    with pytest.raises(UserError, match="ends every text with a special token"):
        leave_open(tokenizer)


@pytest.fixture
def ending(tiny_checkpoints, tmp_path):
    """The tiny Llama, its tokenizer saved so that it ends every text with EOS."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = ENDING
    tiny_model("llama", len(tokenizer)).save_pretrained(tmp_path / "ending")
    tokenizer.save_pretrained(tmp_path / "ending")
    return tmp_path / "ending"


def test_every_stage_reads_an_open_text(tiny_checkpoints, ending):
    """Sampling, perplexity, representations and greedy decoding as with a tokenizer that adds no EOS."""
    found = []
    for weights in (tiny_checkpoints["llama"], ending):
        drawn = TransformersEngine(weights, "float32").sample(["a", "b"], TEXTS[:2], Sampling(n=2, max_new_tokens=6))
        perplexity = ReferenceModel(weights, "float32").perplexities(TEXTS[:2], [" again", " und so"])
        model, tokenizer = load_causal_lm(weights, torch.float32), load_tokenizer(weights)
        states = pooled(model, tokenizer, TEXTS, "last")
        found.append((drawn, perplexity.tolist(), states.tolist(), greedy(model, tokenizer, TEXTS[:2]).continuations))
    assert found[0] == found[1]


def test_pairs_are_split_where_the_prompt_ends(ending, tmp_path, monkeypatch):
    """TRL tokenises a prompt by itself: an EOS after it would take the first token of the completion with it."""
    from polydetox.core.parameters import checked

    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    pairs = pd.DataFrame({"prompt": TEXTS[:2], "chosen": [" again", " und so"], "rejected": [" never", " oder nicht"]})
    settings = checked("dpo", max_steps=1, eval_steps=1, batch_size=1)
    trainer = make_trainer(ending, pairs, pairs, settings, tmp_path / "checkpoints")
    tokenizer = tiny_tokenizer()
    for row, prompt, chosen in zip(trainer.train_dataset, pairs["prompt"], pairs["chosen"], strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert row["prompt_ids"] == prompt_ids
        assert row["chosen_ids"] == [*tokenizer(prompt + chosen)["input_ids"][len(prompt_ids) :], 1]


# --- long texts -------------------------------------------------------------------------------------------------


def test_a_models_positions():
    assert context_length(transformers.GPT2Config(n_positions=64)) == 64
    assert context_length(transformers.LlamaConfig(max_position_embeddings=128)) == 128
    assert context_length(transformers.Gemma3Config(text_config={"max_position_embeddings": 32})) == 32
    for unlimited in (transformers.BloomConfig(), transformers.FalconConfig(alibi=True), transformers.MambaConfig(),
                      transformers.T5Config()):  # fmt: skip
        assert context_length(unlimited) is None


def test_of_a_long_prompt_the_last_tokens_are_continued(tiny_checkpoints, tmp_path):
    weights, sampling = tiny_checkpoints["gpt2"], Sampling(n=2, max_new_tokens=4)
    prompts = pd.DataFrame({"prompt_id": ["short", "long"], "prompt": ["You are welcome", LONG]})
    table = generate(weights, prompts, sampling, tmp_path, engine="transformers", dtype="float32")
    engine = TransformersEngine(weights, "float32")
    whole = engine.tokenizer(LONG)["input_ids"]
    kept = [2, *whole[-(256 - 4 - 1) :]]  # BOS, and 251 of the prompt's own
    assert len(whole) > 256 and encode_prompts(engine.tokenizer, [LONG], 256, 4) == [kept]
    rest = engine.tokenizer.decode(kept, skip_special_tokens=True)
    assert engine.tokenizer(rest)["input_ids"] == kept  # so that it is continued alike
    expected = engine.sample(["long"], [rest], sampling)[0]
    texts = [engine.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in expected]
    assert [text.strip() for text in table.loc[table["prompt_id"] == "long", "continuation"]] == [
        text.rstrip("\ufffd").strip() for text in texts
    ]
    found = shortened(weights, prompts["prompt_id"], prompts["prompt"], 4)
    assert found.texts == ["long"] and found.positions == 256
    assert not shortened(tiny_checkpoints["bloom"], prompts["prompt_id"], prompts["prompt"], 4)


def test_new_tokens_that_leave_no_room_are_refused(tiny_checkpoints):
    engine = TransformersEngine(tiny_checkpoints["gpt2"], "float32")
    with pytest.raises(UserError, match=r"255 new tokens leave no room .* 256 positions; lower max_new_tokens"):
        engine.sample(["a"], ["You are"], Sampling(n=1, max_new_tokens=255))


def test_a_long_text_is_pooled_over_its_first_tokens(tiny_checkpoints):
    """As the paper's code truncates: at the end, to the model's positions."""
    weights, texts = tiny_checkpoints["gpt2"], ["You are welcome.", LONG]
    model, tokenizer = load_causal_lm(weights, torch.float32), load_tokenizer(weights)
    found = pooled(model, tokenizer, texts, "last")[:, 0]
    streams = []
    model.transformer.ln_f.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0][0]))
    for text in texts:
        next_logits(model, tokenizer(text)["input_ids"][:256])
    np.testing.assert_allclose(found, [stream.mean(dim=0).numpy() for stream in streams], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["conditional", "published"])
def test_of_a_long_prompt_the_last_tokens_are_read(tiny_checkpoints, method):
    reference = ReferenceModel(tiny_checkpoints["gpt2"], "float32", method=method)
    prompts, endings = ["You are welcome", LONG, "You are welcome"], [" here", " now and then", f" {LONG}"]
    found = reference.perplexities(prompts, endings)
    assert found[0] == pytest.approx(reference.perplexities(prompts[:1], endings[:1])[0], rel=1e-5)
    before, whole = (reference.tokenizer(text)["input_ids"] for text in (LONG, LONG + endings[1]))
    assert whole[: len(before)] == before
    ids = [2, *whole[-255:]]
    scores = next_logits(reference.model, ids).log_softmax(-1)
    losses = [-float(scores[at - 1, ids[at]]) for at in range(256 - (len(whole) - len(before)), 256)]
    assert found[1] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert math.isnan(found[2])  # nothing of its prompt is left


def test_an_encoder_with_positions_reads_the_last_tokens_of_a_prompt(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=SPECIAL)
    torch.manual_seed(0)
    transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=48, pad_token_id=0,
        bos_token_id=2, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None, init_std=0.5,
    )).save_pretrained(tmp_path)  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    reference = ReferenceModel(tmp_path, "float32")
    found = reference.perplexities([LONG, "You", LONG], [" and then", " here", LONG])
    for value, prompt, ending in zip(found, [LONG, "You"], ["and then", "here"], strict=False):
        ids, labels = (torch.tensor([tokenizer(text)["input_ids"][-48:]]) for text in (prompt, ending))
        with torch.inference_mode():
            assert value == pytest.approx(float(reference.model(input_ids=ids, labels=labels).loss.exp()), rel=1e-4)
    assert math.isnan(found[2])
    published = ReferenceModel(tmp_path, "float32", method="published").perplexities([LONG, "You"], [" and", " here"])
    assert math.isnan(published[0]) and published[1] > 0


def test_what_is_shortened_is_said_and_recorded(tmp_path, capsys):
    stage = Stage("probe", tmp_path, {})
    stage.skips(Shortened(256, "last", ["a", "b"]), "shortened")
    stage.skips(Shortened(256, "last", ["b", "c"]), "shortened")
    assert (
        "2 texts have more tokens than the model's 256 positions; it reads the last ones (a, b)"
        in capsys.readouterr().out
    )
    stage.finish()
    assert read_json(tmp_path / "manifest.json")["shortened"] == {
        "positions": 256, "kept": "last", "texts": 3, "ids": ["a", "b", "c"]
    }  # fmt: skip
