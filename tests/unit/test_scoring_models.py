"""Scores from stored responses, and from sequence-classification checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.scoring import CachedScorer, get_scorer, huggingface
from polydetox.scoring.huggingface import READY, Checkpoint
from polydetox.scoring.stored import read_stored

# --- stored -----------------------------------------------------------------------------------------------------


def answer(value: float | None) -> dict:
    return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value, "type": "PROBABILITY"}}}}


def write_lines(path, rows) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")


def test_published_responses_are_read(tmp_path):
    rows = [
        {"query": "one", "response": answer(0.25), "prompt": "p"},
        {"query": "two\u2028lines", "response": answer(1), "prompt": "p"},
        {"query": "three", "response": None, "prompt": "q"},
        {"query": "", "response": answer(0.02), "prompt": "q"},
    ]
    write_lines(tmp_path / "perspective_api_eval-mgpt_zh-hans.json", rows)
    write_lines(
        tmp_path / "perspective_api_eval-mgpt_de.json", [{"query": "one", "response": answer(0.5), "prompt": "p"}]
    )
    (tmp_path / "perspective_api_eval-mgpt_fr.json").write_text("\n")  # which adds nothing
    table, skipped = read_stored(tmp_path)
    assert not skipped
    assert table["language"].tolist() == ["de"] + ["zh"] * 4
    assert table["prompt"].tolist() == ["p", "p", "p", "q", "q"]
    np.testing.assert_array_equal(table["score"], [0.5, 0.25, 1.0, np.nan, 0.02])

    scorer = get_scorer(f"stored:{tmp_path}")
    assert scorer.languages == {"de", "zh"}
    scores, reasons, _ = zip(*scorer.results(["two\u2028lines", "three", "one", "four", ""], "zh"), strict=True)
    np.testing.assert_array_equal(scores, [1.0, np.nan, 0.25, np.nan, 0.02])
    assert reasons == ("", "no score in the stored response", "", "not among the stored scores", "")
    assert scorer.score(["one"], "de").tolist() == [0.5]
    with pytest.raises(UserError, match="does not support language 'en'; it supports: de, zh"):
        scorer.score(["one"], "en")


def test_polyglot_toxicity_prompts_are_read_as_lines_and_parquet(tmp_path):
    rows = [
        {"text": "one", "perspective": answer(0.75), "meta_data": {"lang": "ko"}},
        {"prompt": "two", "prompt_perspective": answer(0.5), "lang": "sv"},
    ]
    write_lines(tmp_path / "lines.jsonl", rows)
    for number, row in enumerate(rows):
        pd.DataFrame([row]).to_parquet(tmp_path / f"part{number}.parquet")
    for source in ("lines.jsonl", "part0.parquet"):
        assert get_scorer(f"stored:{tmp_path / source}").score(["one", "two"], "ko")[0] == 0.75
    assert get_scorer(f"stored:{tmp_path}").score(["two"], "sv").tolist() == [0.5]
    folder = tmp_path / "wildchat-sv"
    folder.mkdir()
    row = {"prompt": "two", "prompt_perspective": answer(0.25), "lang": "sv"}
    pd.DataFrame([row]).to_parquet(folder / "wildchat-00000.parquet")
    assert get_scorer(f"stored:{folder}").languages == {"sv"}


@pytest.mark.parametrize(("file", "languages"), [
    ("gemma-3-270m-it/scores_pt-br.json", {"pt"}),
    ("gemma-3-270m-it/scores_ZH-Hans.jsonl", {"zh"}),
    ("scores_zh-cn.json", {"zh"}),
    ("de/it.json", {"it"}),
    ("perspective_id.json", {"id"}),
    ("scores_fi.json", set()),  # a language that is known, but none of those that are scored here
])  # fmt: skip
def test_the_language_of_a_file_is_that_of_its_own_name(tmp_path, file, languages):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write_lines(tmp_path / file, [{"query": "one", "response": answer(0.5), "prompt": "p"}])
    assert get_scorer(f"stored:{tmp_path / file}").languages == languages
    assert get_scorer(f"stored:{(tmp_path / file).parent}").languages == languages


@pytest.mark.parametrize("name", [
    "it/answers.json", "wildchat-it/wildchat-0.json", "gemma-3-270m-it.json", "scores_xx.json", "scores_pt-br-v2.json",
])  # fmt: skip
def test_a_file_whose_language_is_not_told_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    row = {"query": "one", "response": answer(0.5), "prompt": "p"}
    write_lines(tmp_path / name, [row | {"language": "de"}, row])
    write_lines((tmp_path / name).parent / "good_de.json", [row])
    for source in (tmp_path / name, (tmp_path / name).parent):
        with pytest.raises(UserError) as error:
            get_scorer(f"stored:{source}").score(["one"], "de")
        assert f"of which language are {(tmp_path / name).name}? Let a file's name end in its locale" in str(
            error.value
        )
    write_lines(tmp_path / name, [row | {"language": "de"}, row | {"lang": "pt-BR"}, row | {"language": "fi"}])
    assert get_scorer(f"stored:{tmp_path / name}").languages == {"de", "pt"}, "each row may tell its own"


def test_a_renamed_file_is_another_revision(tmp_path):
    write_lines(tmp_path / "a_de.json", [{"query": "one", "response": answer(0.5), "prompt": "p"}])
    before = get_scorer(f"stored:{tmp_path}").revision
    (tmp_path / "a_de.json").rename(tmp_path / "a_it.json")
    assert get_scorer(f"stored:{tmp_path}").revision != before, (
        "cached scores belong to the languages as they were told"
    )


def test_published_averages_count_the_stored_scores_of_blank_continuations(tmp_path):
    """Two prompts of two continuations, one of them blank: the published average is over all four responses."""
    from polydetox.metrics.toxicity import average_toxicity

    continuations = [["a", ""], ["b", "\n"]]
    stored = [[0.9, 0.1], [0.5, 0.3]]
    rows = [{"query": text, "response": answer(score), "prompt": f"p{prompt}"} for prompt in range(2)
            for text, score in zip(continuations[prompt], stored[prompt], strict=True)]  # fmt: skip
    write_lines(tmp_path / "published_de.json", rows)
    published = CachedScorer(get_scorer(f"stored:{tmp_path}"), tmp_path / "cache.sqlite")
    texts = [text for both in continuations for text in both]
    for _ in range(2):  # the second time from the cache
        scores = published.score(texts, "de")
        np.testing.assert_array_equal(scores, [0.9, 0.1, 0.5, 0.3])
    assert average_toxicity(scores.reshape(2, 2)).mean() == pytest.approx((0.9 + 0.1 + 0.5 + 0.3) / 4)
    # A blank text of which the file says nothing is missing, and so is one that is no text at all.
    scores, reasons, _ = zip(*published.results(["  ", "", None], "de"), strict=True)
    np.testing.assert_array_equal(scores, [np.nan, 0.1, np.nan])
    assert reasons == ("no text", "", "no text")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query": "a", "resp', r"x_en\.json:2: not valid JSON"),
        ("[1]", r"x_en\.json:2: expected an object"),
        ('{"query": "a"}', r"x_en\.json:2: no stored score here: expected the fields 'query' with 'response'"),
        ('{"query": "a", "response": {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 7}}}}}',
         r"x_en\.json:2: field 'TOXICITY' should be less than or equal to 1"),
        ('{"query": 3, "response": null}', r"x_en\.json:2: field 'text' should be a valid string"),
    ],
)  # fmt: skip
def test_malformed_lines_are_listed_or_refused_by_file_and_line(tmp_path, line, message):
    good = [json.dumps({"query": f"b{number}", "response": answer(0.5)}) for number in range(30)]
    (tmp_path / "x_en.json").write_text(f"{good[0]}\n{line}\n")
    with pytest.raises(UserError, match=message):
        read_stored(tmp_path / "x_en.json")
    (tmp_path / "x_en.json").write_text("\n".join([good[0], line, *good[1:]]))
    table, skipped = read_stored(tmp_path / "x_en.json")
    assert table["text"].tolist() == [f"b{number}" for number in range(30)]
    assert len(skipped.rejected) == 1 and re.search(message, str(skipped.rejected[0]))
    scorer = CachedScorer(get_scorer(f"stored:{tmp_path / 'x_en.json'}"), tmp_path / "cache")
    assert scorer.score(["b29"], "en").tolist() == [0.5]
    stage = Stage("evaluate", tmp_path / "stage", {})
    stage.scores_with(scorer)
    assert stage.finish()["scorer_skipped"]["rejected_lines"] == [str(skipped.rejected[0])]


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"stored scores: no \.json"):
        get_scorer(f"stored:{tmp_path / 'nothing'}")


# --- checkpoints ------------------------------------------------------------------------------------------------

TEXTS = [
    "a",
    "the neighbours are loud again",
    "no",
    "the sea is calm and the boats are out",
    "again and again " * 30,
    "a a",
]


def save_classifier(folder, problem_type, labels, vocabulary=64):
    """A two-layer random-weight BERT with a tokenizer of characters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    configuration = BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=130, initializer_range=0.5, problem_type=problem_type,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    BertForSequenceClassification(configuration).eval().save_pretrained(folder)
    return folder


def one_by_one(folder, activation) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        encoded = [tokenizer(text, return_tensors="pt", truncation=True, max_length=128) for text in TEXTS]
        return torch.cat([activation(model.eval()(**one).logits) for one in encoded])


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exclusive")
    return save_classifier(folder, "single_label_classification", ["neutral", "toxic"])


@pytest.fixture(scope="module")
def independent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("independent")
    return save_classifier(folder, "multi_label_classification", ["INSULT", "TOXICITY", "THREAT"])


def test_batches_by_length_equal_one_by_one(exclusive, independent, monkeypatch):
    monkeypatch.setitem(huggingface._TOKENS_A_BATCH, "cpu", 80)
    softmax, sigmoid = one_by_one(exclusive, lambda x: x.softmax(-1)), one_by_one(independent, torch.sigmoid)
    assert get_scorer(f"huggingface:{exclusive}?languages=en").score(TEXTS, "en") == pytest.approx(
        softmax[:, 1].numpy(), abs=1e-5
    )
    assert get_scorer(f"huggingface:{independent}?languages=en").score(TEXTS, "en") == pytest.approx(
        sigmoid[:, 1].numpy(), abs=1e-5
    )
    named = get_scorer(f"huggingface:{independent}#threat?languages=en")
    assert named.score(TEXTS, "en") == pytest.approx(sigmoid[:, 2].numpy(), abs=1e-5)
    assert sigmoid[:, 1].std() > 0.01


def test_a_batch_that_does_not_fit_is_halved(exclusive, monkeypatch):
    from transformers import TextClassificationPipeline

    scorer = get_scorer(f"huggingface:{exclusive}?languages=en")
    expected = scorer.score(TEXTS, "en")
    sizes = []
    inner = TextClassificationPipeline.__call__

    def limited(self, texts, **options):
        sizes.append(len(texts))
        if len(texts) > 2:
            raise torch.cuda.OutOfMemoryError
        return inner(self, texts, **options)

    monkeypatch.setattr(TextClassificationPipeline, "__call__", limited)
    assert scorer.score(TEXTS, "en") == pytest.approx(expected, abs=1e-5)
    assert max(sizes) > 2


def test_the_revision_pins_weights_and_label(exclusive, independent):
    revisions = {get_scorer(f"huggingface:{folder}?languages=en").revision for folder in (exclusive, independent)}
    revisions.add(get_scorer(f"huggingface:{independent}#threat?languages=en").revision)
    assert len(revisions) == 3
    assert get_scorer(f"huggingface:{exclusive}?languages=en").revision in revisions


def test_the_hubs_commit_is_part_of_the_revision_whether_pinned_or_the_newest(exclusive, tmp_path):
    """From a cache of the Hub and without network, as on a cluster's nodes; in a process of its own, which reads it."""
    place, commit = tmp_path / "hub/models--owner--name", "1234abcd" * 5
    shutil.copytree(exclusive, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs/main").write_text(commit)
    code = (
        "from polydetox.scoring import get_scorer\n"
        f"for name in ('owner/name', 'owner/name@{commit}'):\n"
        "    scorer = get_scorer(f'huggingface:{name}?languages=en')\n"
        "    print(scorer.revision, round(float(scorer.score(['an insult'], 'en')[0]), 4))\n"
        "get_scorer('huggingface:owner/other?languages=en').revision\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    expected = get_scorer(f"huggingface:{exclusive}?languages=en").score(["an insult"], "en")[0]
    assert done.stdout.splitlines() == [f"{commit}-toxic {round(float(expected), 4)}"] * 2, done.stderr
    assert "scorer 'huggingface:owner/other': owner/other cannot be loaded" in done.stderr


def test_the_revision_of_a_folder_pins_pickled_weights(exclusive, tmp_path):
    shutil.copytree(exclusive, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    revisions = set()
    for content in (b"one", b"another"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        revisions.add(get_scorer(f"huggingface:{tmp_path}?languages=en").revision)
    assert len(revisions) == 2


def test_a_wrong_label_names_the_nearest(independent):
    with pytest.raises(UserError, match=r"has no label 'INSULTS'; did you mean 'INSULT'"):
        get_scorer(f"huggingface:{independent}#INSULTS?languages=en").score(["a"], "en")


def test_what_cannot_be_loaded_is_said_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        get_scorer(f"huggingface:{tmp_path}?languages=en").score(["a"], "en")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="needs a Hub id or a folder"):
        get_scorer("huggingface:?languages=en")


@pytest.mark.parametrize(("name", "message"), [
    ("owner/name#bad", r"for which languages was it trained\? Name them: huggingface:owner/name#bad\?languages=en,de"),
    ("owner/name?languages=", "for which languages was it trained"),
    ("owner/name?languages=en,xx", "unknown language 'xx'"),
])  # fmt: skip
def test_the_languages_of_a_checkpoint_are_said_and_never_assumed(name, message):
    with pytest.raises(UserError, match=message):
        get_scorer(f"huggingface:{name}")
    assert get_scorer("huggingface:owner/name?languages=en, de").languages == {"de", "en"}


def test_a_revision_can_be_named(exclusive):
    scorer = get_scorer("huggingface:owner/name@abc#bad?languages=de,en")
    assert scorer.checkpoint == Checkpoint("owner/name", frozenset({"de", "en"}), ("bad",), revision="abc")
    assert scorer.id == "huggingface:owner/name@abc#bad", "what it has scored stays in the cache as languages are added"
    ready = get_scorer("textdetox-xlmr-large@abc")
    assert (ready.id, ready.checkpoint.revision) == ("textdetox-xlmr-large", "abc")
    assert ready.languages == READY["textdetox-xlmr-large"].languages
    assert get_scorer(f"huggingface:{exclusive}?languages=en").checkpoint.revision is None
    for name in ("detoxify-multilingual", "distilbert-toxicity"):
        assert len(READY[name].revision) == 40


def test_ready_checkpoints_know_their_languages():
    for name, checkpoint in READY.items():
        scorer = get_scorer(name)
        assert isinstance(checkpoint, Checkpoint)
        assert scorer.languages <= frozenset(LANGUAGES)
        assert "en" in scorer.languages
    with pytest.raises(UserError, match="'detoxify-multilingual' does not support language 'ko'"):
        get_scorer("detoxify-multilingual").score(["a"], "ko")
