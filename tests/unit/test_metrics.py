"""The metrics, against hand-computed and brute-force values."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from notebook_cells import definitions, run_cell, summarise
from polydetox.metrics import diversity, language, toxicity
from polydetox.metrics.evaluate import TOKEN_DISTINCT
from polydetox.metrics.fluency import ReferenceModel, common_prefix
from polydetox.metrics.toxicity import matrix
from polydetox.stats.bootstrap import bootstrap, pooled_quantile
from tiny import FAMILIES, tiny_tokenizer

NAN = float("nan")


def test_toxicity_by_hand():
    scores = np.array([[0.1, 0.9, 0.2], [0.5, NAN, 0.3], [NAN, NAN, NAN], [0.0, 0.4, 0.2]])
    assert toxicity.maximum_toxicity(scores) == pytest.approx([0.9, 0.5, 0.4])
    assert toxicity.any_toxic(scores, 0.5).tolist() == [1.0, 1.0, 0.0]
    assert toxicity.average_toxicity(scores) == pytest.approx([0.4, 0.4, 0.2])


def test_a_missing_score_is_never_zero():
    assert toxicity.average_toxicity(np.array([[0.8, NAN]])).tolist() == [0.8]
    assert len(toxicity.maximum_toxicity(np.full((3, 2), NAN))) == 0
    assert bootstrap(np.array([])) == {"value": None, "low": None, "high": None}


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), min_size=2, max_size=2), min_size=1, max_size=6))
def test_toxicity_by_brute_force(rows):
    scored = [[value for value in row if not math.isnan(value)] for row in rows]
    scored = [row for row in scored if row]
    scores = np.array(rows)
    assert toxicity.maximum_toxicity(scores).tolist() == [max(row) for row in scored]
    assert toxicity.any_toxic(scores, 0.5).tolist() == [float(any(v >= 0.5 for v in row)) for row in scored]
    assert toxicity.average_toxicity(scores) == pytest.approx([sum(row) / len(row) for row in scored])


def test_distinct_by_hand():
    assert diversity.distinct(["a b a", "a b"], 1, "en") == pytest.approx(2 / 5)
    assert diversity.distinct(["a b a", "a b"], 2, "en") == pytest.approx(2 / 3)  # ab, ba, ab
    assert diversity.distinct(["a b a", "a b"], 3, "en") == 1.0
    assert diversity.distinct(["a"], 2, "en") is None
    assert diversity.distinct(["あ あい"], 1, "ja") == pytest.approx(2 / 3)


def test_repetition_by_hand():
    assert diversity.repetition("a b a b", "en") == 0.5 and diversity.repetition("a b c", "en") == 0.0
    assert diversity.repetition("hello", "en") == 0.0, "one word"
    assert diversity.repetition("笨笨蛋蛋", "zh") == diversity.repetition("笨笨 蛋蛋", "zh") == 0.5
    assert np.isnan(diversity.repetition("  ", "en"))


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    """Coverage over many simulated sets, which a wrong unit or a wrong tail would miss."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap(generator.normal(1.0, 2.0, size=60), samples=300, confidence=0.9, seed=trial)
        hits += interval["low"] <= 1.0 <= interval["high"]
    assert 0.84 <= hits / 300 <= 0.95


def test_bootstrap_is_exact_on_a_constant_and_repeatable():
    assert bootstrap(np.full(5, 0.25)) == {"value": 0.25, "low": 0.25, "high": 0.25}
    values = np.arange(9.0)
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)


def test_pooled_quantile_against_brute_force():
    generator = np.random.default_rng(0)
    groups = [generator.exponential(size=size) for size in (3, 1, 5, 4)]
    result = pooled_quantile(groups, 0.5, samples=200, confidence=0.8, seed=3)
    assert result["value"] == pytest.approx(np.median(np.concatenate(groups)))
    places = np.random.default_rng(3).integers(4, size=(200, 4))
    brute = [np.quantile(np.concatenate([groups[i] for i in row]), 0.5, method="inverted_cdf") for row in places]
    assert [result["low"], result["high"]] == pytest.approx(list(np.quantile(brute, [0.1, 0.9])))


def test_language_detection_in_the_papers_languages():
    texts = [
        "Das ist wirklich sehr schlecht geworden.",
        "今日はとても天気がいいですね。",
        "यह बहुत बुरी बात है।",
        "123 !!",
    ]
    assert language.detect(texts) == ["de", "ja", "hi", None]


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_is_that_of_a_plain_forward_pass(tiny_checkpoints, family):
    """The shared prompt cache must give what one pass over each whole text gives."""
    reference = ReferenceModel(tiny_checkpoints[family], "float32", batch_size=2)
    prompts = ["The neighbours"] * 4 + ["Der Nachbar"]
    continuations = [" are loud again", " say a word", "", " are", " ist heute"]
    found = reference.perplexities(prompts, continuations)
    assert math.isnan(found[2])
    for prompt, continuation, value in zip(prompts, continuations, found, strict=True):
        if not continuation:
            continue
        start = len(reference.tokenizer(prompt)["input_ids"])
        ids = torch.tensor([reference.tokenizer(prompt + continuation)["input_ids"]])
        with torch.inference_mode():
            logits = reference.model(ids).logits[0, :-1].log_softmax(-1)
        nll = -logits.gather(-1, ids[0, 1:, None])[start - 1 :, 0]
        assert value == pytest.approx(float(nll.mean().exp()), rel=1e-4)


def test_encoder_decoder_reference_model(tmp_path, tiny_checkpoints):
    """mT5's kind of reference model: the prompt is read by the encoder, the continuation predicted by the decoder."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoints["llama"])
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                 decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reference = ReferenceModel(tmp_path, "float32")
    found = reference.perplexities(["The neighbours"] * 2, [" are loud", " say"])
    for continuation, value in zip(["are loud", "say"], found, strict=True):
        labels = torch.tensor([tokenizer(continuation)["input_ids"]])
        with torch.inference_mode():
            loss = model(**tokenizer("The neighbours", return_tensors="pt"), labels=labels).loss
        assert value == pytest.approx(float(loss.exp()), rel=1e-4)


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4]) == 2
    assert common_prefix([1, 2], [1, 2, 4]) == 2
    assert common_prefix([], [1]) == 0


def table():
    return pd.DataFrame({
        "prompt_id": ["a", "a", "b", "b"], "prompt": ["x", "x", "y", "y"], "sample": [0, 1, 0, 1],
        "continuation": ["du du", "nein", "", "ja"], "toxicity": [0.9, 0.1, NAN, 0.2],
        "secondary_toxicity": [1.0, 0.0, NAN, 0.0], "perplexity": [10.0, 20.0, NAN, 40.0],
        "detected_language": ["de", "en", None, "de"], "empty": [False, False, True, False],
        "truncated": [True, True, False, True],
        "token_distinct_1": [0.5, 0.5, 1.0, 1.0], "token_distinct_2": [0.25, 0.25, NAN, NAN],
        "token_distinct_3": NAN,
    })  # fmt: skip


def test_summary_by_hand():
    result = summarise(table(), "de", 0.5, samples=100, confidence=0.95, seed=0)
    assert (result["prompts"], result["continuations"], result["scored"]) == (2, 4, 3)
    assert (result["empty"], result["truncated"]) == (1, 3)
    assert result["emt"]["value"] == pytest.approx((0.9 + 0.2) / 2)
    assert result["toxprob"]["value"] == 0.5
    assert result["avgtox"]["value"] == pytest.approx((0.5 + 0.2) / 2)
    assert result["perplexity"]["median"]["value"] == 20.0
    assert (result["with_perplexity"], result["outliers"]) == (3, 0)
    assert result["token_distinct"]["1"]["value"] == 0.75 and result["token_distinct"]["2"]["value"] == 0.25
    assert result["token_distinct"]["3"]["value"] is None
    assert result["distinct"]["1"]["value"] == pytest.approx((2 / 3 + 1.0) / 2)
    assert result["language_rate"]["value"] == pytest.approx((0.5 + 1.0) / 2)
    assert result["secondary_toxicity"]["value"] == pytest.approx((0.5 + 0.0) / 2)
    assert 0.2 <= result["emt"]["low"] <= result["emt"]["value"] <= result["emt"]["high"] <= 0.9


def test_outliers_are_counted_and_kept():
    extreme = table().assign(perplexity=[10.0, 2e4, NAN, 4e5])
    result = summarise(extreme, "de", 0.5, samples=50, confidence=0.95, seed=0)
    assert (result["with_perplexity"], result["outliers"]) == (3, 2) and result["perplexity"]["median"]["value"] == 2e4


def test_token_diversity_of_each_prompt_without_its_empty_continuations():
    tokenizer = tiny_tokenizer()
    scores = table().drop(columns=TOKEN_DISTINCT).assign(language="de", gloss="", secondary_perplexity=NAN)
    names = vars(definitions("score")) | {"scores": scores, "tokenizer": tokenizer}
    found = run_cell("score", "distinct-02", **names)
    expected = names["published_distinct"]([["du du", "nein"], ["ja"]], tokenizer)
    assert found["scores"][TOKEN_DISTINCT].to_numpy().tolist() == expected[[0, 0, 1, 1]].tolist()


def test_matrix_keeps_prompts_in_order_and_gaps_missing():
    shuffled = table().iloc[[2, 3, 1, 0]]
    assert matrix(shuffled, "perplexity")[1].tolist() == [10.0, 20.0]
    assert math.isnan(matrix(shuffled, "perplexity")[0, 0])
