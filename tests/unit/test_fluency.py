"""Perplexity in batches against one continuation at a time; diversity against decoding each token by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from notebook_cells import definitions
from polydetox.metrics import fluency
from polydetox.metrics.evaluate import OUTLIER
from polydetox.metrics.fluency import ReferenceModel, by_length, padded
from tiny import FAMILIES, tiny_tokenizer

published_distinct = definitions("score").published_distinct
PROMPTS = ["The neighbours", "Der Nachbar ist", "The neighbours are loud", "今日は", "Der Nachbar mit"]
ENDINGS = [
    " are loud again",
    " say",
    " und niemand sagt etwas dazu.",
    "とても天気がいい",
    "s",
    " " * 3,
    " again and again",
]
ROWS = [(prompt, ending) for ending in ENDINGS for prompt in PROMPTS]  # those of one prompt are not neighbours
SPACED = [(prompt, ending) for prompt, ending in ROWS if ending.startswith(" ")]


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory, tiny_checkpoints):
    """A random-weight T5 of mT5's kind: gated, its output layer its own, the end of a text a token."""
    from tokenizers.processors import TemplateProcessing
    from transformers import T5Config, T5ForConditionalGeneration

    folder, tokenizer = tmp_path_factory.mktemp("t5"), tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                 decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu",
                 tie_word_embeddings=False)
    ).eval()  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def losses(reference: ReferenceModel, text: str) -> tuple[float, int]:
    """The loss of a whole text as the model gives it, and its number of tokens."""
    ids = reference.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(reference.model(input_ids=ids, labels=ids).loss), ids.shape[1]


def one_by_one(reference: ReferenceModel, prompt: str, continuation: str) -> float:
    """The published perplexity: the loss of the text less that of its prompt, each times its tokens but one."""
    if not continuation.strip():
        return math.nan
    (whole, tokens), (alone, of_prompt) = losses(reference, prompt + continuation), losses(reference, prompt)
    if tokens <= of_prompt:
        return math.nan
    return math.exp((whole * (tokens - 1) - alone * (of_prompt - 1)) / (tokens - of_prompt))


def columns(rows):
    return [prompt for prompt, _ in rows], [ending for _, ending in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_causal_model_gives_the_published_perplexities(tiny_checkpoints, family):
    reference = ReferenceModel(tiny_checkpoints[family], "float32", batch_size=4, method="published")
    expected = [one_by_one(reference, *row) for row in ROWS]
    assert reference.perplexities(*columns(ROWS)) == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert sum(map(math.isnan, expected)) >= len(PROMPTS)  # the blank ones
    # Where the prompt's tokens begin the text's, the published perplexity is the conditional one.
    conditional = ReferenceModel(tiny_checkpoints[family], "float32", batch_size=4)
    expected = [one_by_one(reference, *row) for row in SPACED]
    assert conditional.perplexities(*columns(SPACED)) == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_an_encoder_decoder_gives_the_published_perplexities(encoder_decoder):
    reference = ReferenceModel(encoder_decoder, "float32", batch_size=4, method="published")
    expected = [one_by_one(reference, *row) for row in ROWS]
    found = reference.perplexities(*columns(ROWS))
    assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert np.nanmax(found) > 1.5 * np.nanmin(found)


def test_an_encoder_decoder_reads_the_prompt_alone(encoder_decoder):
    reference = ReferenceModel(encoder_decoder, "float32", batch_size=4)
    found = reference.perplexities(*columns(ROWS))
    for (prompt, ending), value in zip(ROWS, found, strict=True):
        if not ending.strip():
            assert math.isnan(value)
            continue
        labels = reference.tokenizer(ending.strip(), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            loss = reference.model(**reference.tokenizer(prompt, return_tensors="pt"), labels=labels).loss
        assert value == pytest.approx(float(loss.exp()), rel=1e-4)


@pytest.mark.parametrize("method", ["conditional", "published"])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_prompt_is_read_once(tiny_checkpoints, encoder_decoder, kind, method):
    """All prompts together take no more passes than one with as many continuations."""
    reference = ReferenceModel(
        encoder_decoder if kind == "t5" else tiny_checkpoints[kind], "float32", batch_size=1000, method=method
    )
    read: list[int] = []

    def count(module, arguments, keywords):
        ids = next(keywords[name] for name in ("decoder_input_ids", "labels", "input_ids") if name in keywords)
        read.append(len(ids))

    reference.model.register_forward_pre_hook(count, with_kwargs=True)
    prompts, continuations = ["The neighbours"] * 25 + ["Der Nachbar"] * 25, [f" say {n}" for n in range(25)] * 2
    reference.perplexities(prompts, continuations)
    if (kind, method) == ("t5", "published"):
        assert read == [52]  # every text and each prompt once
    else:
        assert sum(read) == 2 + 50


def test_what_the_published_code_leaves_out_is_kept(tiny_checkpoints):
    reference = ReferenceModel(tiny_checkpoints["llama"], "float32")
    with torch.no_grad():
        reference.model.lm_head.weight.mul_(30.0)  # far surer of itself than it has reason to be
    found = reference.perplexities(["The neighbours"] * 3, [" are loud", " say", " again"])
    assert np.isfinite(found).all() and (found >= OUTLIER).any()


def test_batches_of_like_length():
    assert list(by_length(["a", "bbb", "cc", "dddd"], 2, len)) == [["dddd", "bbb"], ["cc", "a"]]
    assert padded([[1, 2, 3], [4]], -1).tolist() == [[1, 2, 3], [4, -1, -1]]
    assert list(by_length([], 2, len)) == []


def test_a_cache_is_left_as_it_was(tiny_checkpoints):
    reference = ReferenceModel(tiny_checkpoints["gpt2"], "float32")
    with torch.inference_mode():
        cache = reference.model(torch.tensor([[2, 5], [2, 6]]), use_cache=True).past_key_values
    before = cache.layers[0].keys.clone()
    chosen = fluency.rows_of(cache, torch.tensor([1, 1, 0]))
    assert torch.equal(cache.layers[0].keys, before)
    assert torch.equal(chosen.layers[0].keys, before[[1, 1, 0]])


# --- diversity --------------------------------------------------------------------------------------------------


def decoded_one_by_one(texts: list[str], tokenizer) -> list[float]:
    """The published diversity: every token decoded by itself, n-grams as strings joined by underscores."""
    grams: list[set[str]] = [set(), set(), set()]
    total = 0
    for text in texts:
        pieces = [tokenizer.decode(token, skip_special_tokens=True) for token in tokenizer(text)["input_ids"]]
        pieces = [piece for piece in pieces if piece]
        for order, found in enumerate(grams, 1):
            found.update("_".join(pieces[start : start + order]) for start in range(len(pieces) - order + 1))
        total += len(pieces)
    return [len(found) / total if total else math.nan for found in grams]


def test_diversity_is_that_of_decoding_each_token():
    tokenizer = tiny_tokenizer()
    prompts = [
        ["The neighbours are loud again", " are loud again", "loud loud loud loud"],
        ["今日はとても天気がいいので散歩", "Сегодня хорошая погода 🙂", "s"],
        ["a_b", "a _b", "_ _ _", "a__b_c", "b_a _b a"],  # underscores: different n-grams may join to one string
        ["x"],
        [],
        ["", "the the"],
    ]
    expected = [decoded_one_by_one(texts, tokenizer) for texts in prompts]
    found = published_distinct(prompts, tokenizer)
    assert found.shape == (6, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)
    assert np.isnan(found[4]).all()


def test_underscores_join_different_grams_to_one():
    """By hand, with a tokenizer of words: a | b_c and a_b | c are two pairs and one string."""

    class Words:
        pieces = ("", "a", "b_c", "a_b", "c")

        def __call__(self, texts):
            return {"input_ids": [[self.pieces.index(word) for word in text.split()] for text in texts]}

        def decode(self, token, skip_special_tokens=True):
            return self.pieces[token]

    # Pieces: a, b_c, a_b, c; pairs: one string, a_b_c; four tokens.
    assert published_distinct([["a b_c", "a_b c"]], Words())[0].tolist() == [1.0, 0.25, 0.0]
