"""Vocabulary trimming: closed under the merges, same tokens, same logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from notebook_cells import definitions, run_cell
from polydetox.core.errors import UserError
from polydetox.data.prompts import parallel_translations
from polydetox.models.checkpoints import load_causal_lm, load_tokenizer
from tiny import FAMILIES, TEXTS, tiny_model, tiny_tokenizer

TRIM = definitions("trim")


def test_derivation_by_hand():
    vocabulary = {token: number for number, token in enumerate(["a", "b", "c", "ab", "bc", "abc", "abcab"])}
    ranks = {pair: rank for rank, pair in enumerate([("b", "c"), ("a", "b"), ("a", "bc"), ("abc", "ab")])}
    # b+c has the lower rank, so abc is made over bc, and the second ab on its own.
    assert TRIM.derivation("abc", vocabulary, ranks) == {"a", "b", "c", "bc", "abc"}
    assert TRIM.derivation("abcab", vocabulary, ranks) == {"a", "b", "c", "bc", "ab", "abc", "abcab"}


@pytest.mark.parametrize("family", FAMILIES)
def test_trimmed_checkpoint_tokenises_and_predicts_as_before(tmp_path, family):
    tokenizer = tiny_tokenizer()
    model = tiny_model(family, len(tokenizer))
    kept_texts, other = TEXTS[:2], TEXTS[2]
    keep = TRIM.tokens_to_keep(tokenizer, kept_texts)
    assert len(keep) < len(tokenizer)
    before = {text: tokenizer(text)["input_ids"] for text in kept_texts}
    with torch.inference_mode():
        logits = model(torch.tensor([before[TEXTS[0]]])).logits[..., keep]

    TRIM.trim_tokenizer(tokenizer, keep).save_pretrained(tmp_path / "weights")
    TRIM.trim_model(model, keep).save_pretrained(tmp_path / "weights")
    trimmed, small = load_tokenizer(tmp_path / "weights"), load_causal_lm(tmp_path / "weights", torch.float32)
    assert len(trimmed) == len(keep) == small.config.vocab_size == small.get_input_embeddings().weight.shape[0]
    for text in kept_texts:
        assert [keep[token] for token in trimmed(text)["input_ids"]] == before[text]
    with torch.inference_mode():
        after = small(torch.tensor([trimmed(TEXTS[0])["input_ids"]])).logits
    assert torch.equal(after, logits)
    # A text that was not kept is still spelled out, down to bytes, and read back whole.
    assert trimmed.decode(trimmed(other)["input_ids"], skip_special_tokens=True) == other
    assert trimmed.decode(trimmed("名前 ☂")["input_ids"], skip_special_tokens=True) == "名前 ☂"
    assert small.config.eos_token_id == trimmed.eos_token_id == trimmed.convert_tokens_to_ids("<eos>")
    assert trimmed("x")["input_ids"][0] == trimmed.bos_token_id


def test_any_kept_subset_reproduces_its_own_texts():
    """Brute force over single texts: whatever is kept for a text is enough to tokenise it as before."""
    tokenizer = tiny_tokenizer()
    for text in [*TEXTS, "word laut grandes", "niemand niemand", "Сегодня and 今日は"]:
        keep = TRIM.tokens_to_keep(tokenizer, [text])
        trimmed = TRIM.trim_tokenizer(tokenizer, keep)
        assert [keep[token] for token in trimmed(text)["input_ids"]] == tokenizer(text)["input_ids"]


def test_tokens_of_the_sentences_for_retrieval_are_kept_where_they_are_read():
    tokenizer = tiny_tokenizer()
    needed = {token for language in ("de", "ru") for text in parallel_translations(language)
              for token in tokenizer(text, add_special_tokens=False)["input_ids"]}  # fmt: skip

    def kept(sentences):
        settings = SimpleNamespace(languages=["de", "ru"], more_prompts=[], prefixes=[], sentences=sentences)
        names = {**vars(TRIM), "prompts": {}, "texts": [], "expected": [], "tokenizer": tokenizer}
        return set(run_cell("trim", "91e64b7f", settings=settings, stage=SimpleNamespace(reads=str), **names)["keep"])

    assert needed <= kept(True) and not needed <= kept(False)


def test_kept_probability_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    assert torch.allclose(TRIM.kept_probability(logits, torch.tensor([0, 2])), torch.tensor([0.7, 0.9]))


def test_a_total_over_positions_is_that_of_single_texts():
    """Whatever their lengths, and so their padding: the positions after the first token of each text."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", len(tokenizer))
    total, count = TRIM.total_over_positions(model, tokenizer, TEXTS, lambda logits: logits.softmax(dim=-1))
    expected, positions = torch.zeros(len(tokenizer)), 0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            expected += model(torch.tensor([ids])).logits[0, 1:].softmax(dim=-1).sum(dim=0)
        positions += len(ids) - 1
    assert count == positions and torch.allclose(total, expected, atol=1e-5)


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(UserError, match=r"WordLevel.*remove 'trim:'"):
        TRIM.tokens_to_keep(words, ["a"])
