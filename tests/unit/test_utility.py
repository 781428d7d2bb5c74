"""Multiple-choice tasks, their intervals, the pairwise judge, and detection: against values worked out by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from notebook_cells import definitions, some_cells
from polydetox.attribute_control.evaluation import verdict_tokens
from polydetox.attribute_control.training import encode
from polydetox.benchmarks import harness, tasks
from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError
from polydetox.core.parameters import Suite, checked
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.stats.agreement import cluster_auc
from tiny import CHECKOUT, tiny_model, tiny_tokenizer

WINS = definitions("win_rate")
EVALUATION = definitions("attribute_eval")

# --- tasks ------------------------------------------------------------------------------------------------------


def test_the_projects_tasks_are_sound_and_parallel():
    known = tasks.local_tasks()
    assert {"commonsense", "knowledge", "everyday_en", "everyday_zh"} <= set(known)
    languages = [language for name, (_, language) in known.items() if name.startswith("everyday_")]
    answers = set()
    for task in known:
        questions = tasks.local_configuration(task)["custom_dataset"].args[0]["test"]
        texts = [row["question"] for row in questions]
        assert len(set(texts)) == len(texts) >= 16, task
        # The right answer is in every place, so that a model which always names one place is at chance.
        places = [row["answer"] for row in questions]
        assert set(places) == set(range(len(questions[0]["choices"])))
        if task.startswith("everyday_"):
            answers.add(tuple(places))
    assert len(languages) == 7 and len(answers) == 1, "the same questions, in the same order, in each language"


def test_minimal_pairs_differ_in_one_word_that_is_the_stereotype_as_often_as_the_other():
    rows = [json.loads(line) for line in (CHECKOUT / "params/tasks/bias.jsonl").read_text("utf-8").splitlines()]
    counts = Counter(row["language"] for row in rows)
    assert counts["en"] >= 60 and all(counts[language] >= 12 for language in ("de", "fr", "es"))
    groups = {row["group"] for row in rows if row["language"] == "en"}
    assert groups == {"gender", "age", "religion", "origin", "disability", "profession"}
    chosen: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        first, second = (choice.split(" ") for choice in row["choices"])
        assert [left == right for left, right in zip(first, second, strict=True)] == [False] + [True] * len(first[1:])
        stereotype, other = (first, second) if row["answer"] == 0 else (second, first)
        chosen[row["language"], stereotype[0], other[0]] += 1
    # A model that always prefers the more frequent word is at one half.
    assert all(chosen[language, other, word] == count for (language, word, other), count in list(chosen.items()))


def test_stereotypes_are_chosen_by_the_likelihood_of_the_sentence_and_stay_among_themselves(checkout, tmp_path):
    model, tokenizer = tiny()
    suites = {"bias": {"tasks": ["bias_en"], "shots": 0, "limit": 8}}
    items = harness.answer_suites(model, tokenizer, suites, batch_size=4, folder=tmp_path, weights_key="w")
    expected = []
    for row in tasks.local_configuration("bias_en")["custom_dataset"].args[0]["test"][:8]:
        scores = [log_likelihood(model, tokenizer, row["question"], f" {choice}") for choice in row["choices"]]
        expected.append(float(int(np.argmax(scores)) == row["answer"]))
    assert items["correct"].tolist() == expected
    assert [tasks.counts_stereotypes(task) for task in ("bias_fr", "crows_pairs_french", "refusal", "boolq")] == [
        True, True, False, False]  # fmt: skip
    with pytest.raises(UserError, match="mine: a mean of right answers and of preferred stereotypes says nothing"):
        tasks.check_suites({"mine": Suite(tasks=["bias_en", "refusal"])}, "suites")


def test_crows_pairs_count_the_sentence_that_is_the_stereotype(monkeypatch):
    """A task of the harness that has its own measure in place of an accuracy."""
    sample = {"likelihood_diff": 2.0, "arguments": [("", "more"), ("", "less")]}
    samples = {"crows_pairs_english": [{"doc_id": n, "pct_stereotype": n, **sample} for n in (0.0, 1.0)]}
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda **_: {"samples": samples})
    monkeypatch.setattr(harness, "harness_manager", lambda: None)
    found = harness._answer(None, "crows_pairs_english", 0, None, 0)
    assert found["correct"].tolist() == [0.0, 1.0] and found["choices"].tolist() == [2, 2]


def test_languages_of_tasks():
    languages = {
        "everyday_de": "de", "arc_vi": "vi", "hellaswag_ru": "ru", "m_mmlu_zh": "zh", "boolq": "en", "bias_es": "es",
        "global_mmlu_pt": "pt", "crows_pairs_english": "en", "crows_pairs_french": "fr",
    }  # fmt: skip
    assert {name: tasks.task_language(name) for name in languages} == languages


@pytest.mark.parametrize(
    ("row", "said"),
    [("{", "Invalid JSON"), ({"question": " ", "choices": ["b", "c"], "answer": 0}, "question: "),
     ({"question": "a", "choices": ["b"], "answer": 0}, "choices: .* at least 2"),
     ({"question": "a", "choices": ["b", "b"], "answer": 0}, "choices: two of them are the same"),
     ({"question": "a", "choices": ["b", "c"], "answer": 2}, "from 0 to 1"),
     ({"question": "a", "choices": ["b", "c"], "answer": True}, "answer: .* integer")],
)  # fmt: skip
def test_a_bad_question_is_named_by_its_line(tmp_path, row, said):
    good = json.dumps({"question": "a", "choices": ["b", "c"], "answer": 1})
    file = tmp_path / "test.jsonl"
    file.write_text(f"{good}\n{row if isinstance(row, str) else json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"test\.jsonl:2: .*{said}"):
        tasks.read_questions(file)


def some_harness_tasks():
    """The folders of the papers' tasks alone; looking through all of the harness takes long."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folders = [
        "okapi",
        "crows_pairs",
        "global_mmlu/default",
        "mmlu/default",
        "piqa",
        "hellaswag",
        "winogrande",
        "arc",
        "openbookqa",
        "super_glue/boolq",
    ]
    where = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_defaults=False, include_path=[str(where / folder) for folder in folders])


def test_the_papers_tasks_are_the_harnesss():
    known = set(some_harness_tasks().all_tasks)
    assert not tasks._PAPERS - known and len(tasks._PAPERS) == 11 + 8
    listed = yaml.safe_load((CHECKOUT / "params/profiles/paper.yaml").read_text("utf-8"))["capability"]["suites"]
    asked = {task for suite in listed.values() for task in suite["tasks"]}
    assert not asked - known - set(tasks.local_tasks())
    published = checked("capability").suites.items()
    assert all(Suite(**listed[name]) == suite for name, suite in published), "the paper's, as the notebook has them"


def test_mistakes_in_suites_and_task_files_are_named(checkout, monkeypatch):
    monkeypatch.setattr(tasks, "harness_tasks", lambda: ["arc_easy", "arc_vi"])  # looking through all takes long

    def check(**suite):
        tasks.check_suites({"mine": Suite(**suite)}, "params/profiles/tiny.yaml: capability: suites")

    check(tasks=["everyday_de", "arc_easy", "mmlu"])
    with pytest.raises(UserError, match=r"mine: no task 'everyday_dee'; did you mean 'everyday_de'"):
        check(tasks=["everyday_dee"])
    with pytest.raises(UserError, match=r"6 examples are to be shown, but task 'knowledge' has 5"):
        check(tasks=["knowledge"], shots=6)
    file = checkout / "params/tasks/commonsense.yaml"
    content = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(content | {"tset": "x"}))
    with pytest.raises(UserError, match=r"params/tasks/commonsense.yaml: unknown key 'tset'; did you mean 'test'"):
        tasks.local_tasks()
    file.write_text(yaml.safe_dump(content | {"test": "nowhere.jsonl"}))
    with pytest.raises(UserError, match=r"params/tasks/nowhere.jsonl: cannot be read"):
        check(tasks=["commonsense"])


def tiny():
    tokenizer = tiny_tokenizer()
    return tiny_model("llama", len(tokenizer)), tokenizer


def test_answers_are_those_of_the_likelihood_and_kept(checkout, tmp_path, monkeypatch):
    """The harness against log-likelihoods summed by hand."""
    model, tokenizer = tiny()
    suites = {"all": {"tasks": ["everyday_en", "everyday_ru"], "shots": 0, "limit": 3}}
    options = {"batch_size": 4, "folder": tmp_path / "kept", "weights_key": "w"}
    items = harness.answer_suites(model, tokenizer, suites, **options)
    expected = []
    for task in suites["all"]["tasks"]:
        for row in tasks.local_configuration(task)["custom_dataset"].args[0]["test"][:3]:
            scores = [
                log_likelihood(model, tokenizer, row["question"], f" {choice}") / len(choice)
                for choice in row["choices"]
            ]
            expected.append(float(int(np.argmax(scores)) == row["answer"]))
    assert items["correct"].tolist() == expected
    assert items["language"].tolist() == ["en"] * 3 + ["ru"] * 3
    assert items["choices"].tolist() == [
        len(row["choices"]) for task in suites["all"]["tasks"]
        for row in tasks.local_configuration(task)["custom_dataset"].args[0]["test"][:3]
    ]  # fmt: skip
    # A second run asks nothing, as its answers are there; other weights are asked, and the same in another type.
    monkeypatch.setattr(harness, "_answer", lambda *_: pytest.fail("asked"))
    pd.testing.assert_frame_equal(items, harness.answer_suites(model, tokenizer, suites, **options))
    for other, changes in ((model, {"weights_key": "other"}), (tiny()[0].bfloat16(), {})):
        with pytest.raises(pytest.fail.Exception, match="asked"):
            harness.answer_suites(other, tokenizer, suites, **options | changes)


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    start = len(tokenizer(context)["input_ids"])
    ids = tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(log_p[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_a_task_whose_data_is_not_available_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "harness_manager", some_harness_tasks)
    model, tokenizer = tiny()
    suites = {"arc": {"tasks": ["arc_vi"], "shots": 0, "limit": 2}}
    with pytest.raises(UserError, match=r"task 'arc_vi': its data is not available .*; run once with a network"):
        harness.answer_suites(model, tokenizer, suites, batch_size=4, folder=tmp_path, weights_key="w")


def items_of(correct: dict[str, list[int]], suite: str = "s") -> pd.DataFrame:
    return pd.DataFrame([
        {"suite": suite, "task": task, "part": task, "language": "en", "item": item, "correct": float(value)}
        for task, values in correct.items() for item, value in enumerate(values)
    ])  # fmt: skip


def test_a_suite_is_the_mean_of_its_tasks_not_of_its_questions():
    measured = harness.accuracies(items_of({"a": [1, 1], "b": [0] * 8}))["s"]
    assert measured["value"] == 0.5 and measured["items"] == 10 and measured["tasks"] == 2
    # a is right in every sample and b wrong, so nothing is left to chance
    assert measured["low"] == measured["high"] == 0.5


def test_chance_is_the_mean_over_tasks_of_one_over_the_choices():
    items = items_of({"a": [1, 1], "b": [0] * 8})
    assert math.isnan(harness.chance(items)), "earlier versions did not keep the choices"
    items["choices"] = [2, 4, *[5] * 8]
    assert harness.chance(items) == pytest.approx((0.375 + 0.2) / 2)
    assert definitions("summary_capability").answers_of(items) == "2 to 5 answers"
    assert definitions("summary_capability").answers_of(items.tail(8)) == "5 answers"


def test_the_change_is_paired():
    before = items_of({"a": [1, 0] * 20})
    after = before.assign(correct=1.0 - before["correct"])
    accuracy_change = definitions("summary_capability").accuracy_change
    assert accuracy_change(before, before, "s") == {"value": 0.0, "low": 0.0, "high": 0.0}
    change = accuracy_change(before, after, "s", samples=4000)
    # One question in two is lost and the other won: the change of a sample is 1 - 2k/40, k binomial.
    spread = 2 * 1.96 * math.sqrt(0.25 / 40)
    assert change["value"] == 0.0 and change["high"] == pytest.approx(spread, abs=0.06)
    only_two = accuracy_change(before, after[after["item"] < 2], "s")
    assert only_two["value"] == 0.0, "questions that one side alone answered do not count"


# --- the judge --------------------------------------------------------------------------------------------------


def test_outcomes_need_both_orders():
    forward = np.array([1.0, -1.0, 1.0, -1.0, 0.0, 1.0])
    backward = np.array([-1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    assert WINS.outcomes(forward, backward).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert np.array_equal(WINS.outcomes(backward, forward), 1.0 - WINS.outcomes(forward, backward))
    assert WINS.position_bias(np.array([2.0, 3.0]), np.array([1.0, -1.0])) == 0.75
    assert WINS.position_bias(np.array([0.0]), np.array([0.0])) == 0.5


def test_what_a_place_is_worth_cancels_in_the_mean_of_both_orders():
    preference, place = np.array([0.5, -0.25, 0.0, 2.0]), 3.0
    forward, backward = place + preference, place - preference
    assert WINS.outcomes(forward, backward).tolist() == [0.5, 0.5, 0.5, 0.5]  # the place outweighs every text
    assert WINS.averaged_outcomes(forward, backward).tolist() == [1.0, 0.0, 0.5, 1.0]
    assert np.array_equal(WINS.averaged_outcomes(backward, forward), 1.0 - WINS.averaged_outcomes(forward, backward))


def test_a_win_rate_counts_prompts_alike():
    outcome, prompt = np.array([1.0, 1.0, 1.0, 0.0, 0.5]), np.array([0, 0, 0, 1, 2])
    rate = WINS.win_rate(outcome, prompt)
    assert rate["value"] == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    assert (rate["wins"], rate["ties"], rate["losses"], rate["pairs"]) == (0.6, 0.2, 0.2, 5)
    assert 0.0 <= rate["low"] < rate["value"] < rate["high"] <= 1.0
    certain = WINS.win_rate(np.ones(4), np.arange(4))
    assert certain["value"] == certain["low"] == certain["high"] == 1.0


def continuations(word: str, count: int = 3) -> pd.DataFrame:
    rows = [{"prompt_id": f"p{n}", "prompt": "The neighbours", "sample": sample, "continuation": f" {word} {n}"}
            for n in range(count) for sample in (0, 1)]  # fmt: skip
    return pd.DataFrame(rows)


def judged(model, tokenizer, folder: Path, tables: dict[str, pd.DataFrame], samples: int | None = 1) -> dict:
    """The namespace of the notebook win_rate, for these continuations and this judge."""
    files = {}
    for name, table in tables.items():
        files[name] = str(folder / f"{name}.parquet")
        table.assign(language="en").to_parquet(files[name])
    settings = checked("win_rate", continuations=files, judged_samples=samples, batch_size=2, bootstrap_samples=20)
    cells = ("-03", "-05", "-06", "rules-02", "-08")
    return some_cells("win_rate", settings, Stage("win_rate", folder / "stage", {}), cells,
                      open_checkpoint=lambda *_: (model, tokenizer), input_hash=lambda _: "judge",
                      weights_of=lambda _: folder, provenance=lambda weights: weights)  # fmt: skip


def test_the_judge_reads_the_log_odds_of_its_verdicts(tmp_path):
    model, tokenizer = tiny()
    made = judged(model, tokenizer, tmp_path, {"a": continuations("laut"), "b": continuations("sehr")})
    found, question = made["pairs"], made["QUESTION"]
    assert found["sample"].tolist() == [0, 0, 0]
    shared, first, second = verdict_tokens(tokenizer, question, made["VERDICTS"])
    assert tokenizer.decode(shared) in ("", " ")
    for row in found.to_dict("records"):
        texts = [f"{word} {row['prompt_id'][1:]}" for word in ("laut", "sehr")]
        for column, (left, right) in (("forward", texts), ("backward", texts[::-1])):
            asked = question.format(prompt="The neighbours", first=left, second=right)
            with torch.no_grad():
                last = model(torch.tensor([tokenizer(asked)["input_ids"] + shared])).logits[0, -1]
            assert row[column] == pytest.approx(float(last[first] - last[second]), abs=1e-4)

    # Equal texts tie exactly by both rules, whatever they are padded with.
    same = judged(model, tokenizer, tmp_path, {"a": continuations("laut"), "c": continuations("laut")}, None)["pairs"]
    assert set(same["outcome"]) == {0.5} and len(same) == 6
    assert set(WINS.averaged_outcomes(same["forward"].to_numpy(), same["backward"].to_numpy())) == {0.5}


def test_two_pairs_of_algorithms_share_no_verdicts(tmp_path):
    """Where a hyphen joined the names, both pairs were a-b-c."""
    words = {"a-b": "laut", "c": "sehr", "a": "dazu", "b-c": "laut"}
    table = judged(*tiny(), tmp_path, {name: continuations(word) for name, word in words.items()})["pairs"]
    of = table.set_index(["algorithm", "opponent"])["forward"]
    assert of.loc[("a-b", "c")].tolist() != of.loc[("a", "b-c")].tolist()


def test_every_two_are_judged_once(tmp_path):
    every = {"a": continuations("laut"), "b": continuations("sehr"), "c": continuations("dazu")}
    model, tokenizer = tiny()
    table = judged(model, tokenizer, tmp_path, every)["pairs"]
    pd.testing.assert_frame_equal(table, judged(None, tokenizer, tmp_path, every)["pairs"])
    assert WINS.win_rates(table, WINS.averaged_outcomes) != WINS.win_rates(table)
    rates = {(row["algorithm"], row["opponent"]): row["value"] for row in WINS.win_rates(table)}
    assert len(rates) == 6
    for (algorithm, opponent), value in rates.items():
        assert value + rates[opponent, algorithm] == pytest.approx(1.0)


def test_a_tokenizer_that_cannot_tell_verdicts_apart_is_refused():
    def deaf(_: str) -> dict[str, list[int]]:
        return {"input_ids": [1, 2]}

    with pytest.raises(UserError, match="does not tell ' A' and ' B' apart"):
        verdict_tokens(deaf, "Which text? Text", (" A", " B"))  # type: ignore[arg-type]


# --- toxicity, perplexity, detection ----------------------------------------------------------------------------


def test_toxic_fraction_skips_what_was_not_scored():
    scores = pd.DataFrame({
        "prompt_id": ["a", "a", "b", "b", "c", "c"], "sample": [0, 1] * 3,
        "toxicity": [0.9, 0.1, 0.7, np.nan, np.nan, np.nan],
    })  # fmt: skip
    measured = prompt_toxicity(scores, "toxicity", 0.5)
    assert measured.index.tolist() == ["a", "b", "c"] and measured.loc["c"].isna().all()
    measured = measured.dropna()
    assert measured["toxic_fraction"].tolist() == [0.5, 1.0]
    assert measured["emt"].tolist() == [0.9, 0.7] and measured["avgtox"].tolist() == [0.5, 0.7]


def test_the_form_of_continuations_by_hand():
    scores = pd.DataFrame({
        "language": "de", "prompt_id": ["a", "a", "b", "b", "c"], "repeated": [0.5, 0.1, 0.0, np.nan, np.nan],
        "detected_language": ["de", "en", "de", None, None],
    })  # fmt: skip
    found = EVALUATION.form_by_language(scores, samples=10, confidence=0.95, seed=0)["de"]
    assert found["language_rate"]["value"] == pytest.approx((0.5 + 1.0) / 2), "prompt c tells no language"
    assert found["repeated"]["value"] == pytest.approx((0.3 + 0.0) / 2)


def test_held_out_losses_count_what_follows_the_prompt():
    model, tokenizer = tiny()
    corpus = pd.DataFrame({
        "row": [0, 1, 2], "domain": ["toxic", "neutral", "neutral"],
        "prompt": ["The neighbours", "", "The neighbours are loud"],
        "text": ["The neighbours are loud again", "nobody says a word", "The neighbours are loud"],
    })  # fmt: skip
    settings = checked("attribute_eval", max_length=32, batch_size=2)
    losses = some_cells("attribute_eval", settings, None, ("-03", "eval-losses-01", "eval-losses-02"),
                        language_model=model, tokenizer=tokenizer, held_out=corpus)["losses"]  # fmt: skip
    assert losses["row"].tolist() == [0, 1], "nothing follows the prompt of the last row"
    expected = log_likelihood(model, tokenizer, "The neighbours", " are loud again")
    assert losses["nll"][0] == pytest.approx(-expected, abs=1e-3)
    assert losses["tokens"][1] == len(tokenizer("nobody says a word")["input_ids"]) - 1


def test_perplexity_is_of_tokens_not_of_rows():
    found = EVALUATION.perplexity(np.array([10.0, 2.0]), np.array([5.0, 1.0]))
    assert found["value"] == pytest.approx(math.exp(12 / 6))
    assert found["low"] == pytest.approx(math.exp(2.0)) and found["high"] == pytest.approx(math.exp(2.0))


def test_roc_auc_against_counting_pairs():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.normal(size=60).round(1)
    toxic, benign = scores[labels == 1], scores[labels == 0]
    difference = toxic[:, None] - benign[None, :]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    found = cluster_auc(labels == 1, scores, np.arange(60), samples=200)
    assert found["value"] == pytest.approx(expected) and found["low"] < expected < found["high"]
    # The same texts three times, as from one prompt, say no more than once.
    thrice = cluster_auc(np.tile(labels == 1, 3), np.tile(scores, 3), np.tile(np.arange(60), 3), samples=200)
    assert {name: thrice[name] for name in found} == pytest.approx(found)
    assert cluster_auc(np.ones(60, dtype=bool), scores, np.arange(60))["value"] is None


def jigsaw(folder: Path, *cells: str, given: dict, **settings) -> dict:
    """The namespace of the notebook jigsaw_classify after its imports and some of its cells."""
    stage = Stage("jigsaw_classify", folder, {})
    return some_cells("jigsaw_classify", checked("jigsaw_classify", **settings), stage, ("-03", *cells), **given)


def test_comments_become_rows_with_their_verdicts(tmp_path):
    comments = pd.DataFrame({"text": ["one two three four", "five"], "label": [1, 0], "split": ["train", "test"]})
    corpus = jigsaw(tmp_path, "-question", "-08", given={})["as_corpus"](comments)
    assert corpus["text"][0].endswith("Answer: yes") and corpus["text"][1].endswith("Answer: no")
    assert corpus["prompt"][0] == "Comment: one two three" and corpus["text"].str.startswith("Comment: ").all()
    assert all(text.startswith(prompt) for prompt, text in zip(corpus["prompt"], corpus["text"], strict=True))
    assert corpus["domain"].tolist() == ["toxic", "neutral"] and corpus["split"].tolist() == ["train", "held_out"]
    asked = {}
    given = {"comments": comments, "train": pd.concat([comments] * 6)[lambda table: table["split"] == "train"],
             "base": tmp_path, "execute": lambda *of, **_: asked.update(of[2])}  # fmt: skip
    settings = {"epochs": 4.0, "train_batch_size": 3, "regularise": {"iterations": 3}}
    cells = "-question", "-08", "-09"
    jigsaw(tmp_path, *cells, given=given, condition="regularised-lm", **settings)
    assert (asked["iterations"], asked["steps"], asked["regulariser_weight_neutral"]) == (3, 3, 0.0), "8 steps, rounded"
    assert (asked["algorithm"], asked["batch_size"], asked["warmup_steps"]) == ("regularised", 3, 0)
    jigsaw(tmp_path, *cells, given=given, condition="sft-lm", **settings)
    assert (asked["algorithm"], asked["iterations"], asked["steps"]) == ("plain", 1, 9), "as many"
    with pytest.raises(UserError, match="regularise: 'max_length' is the notebook's own; leave it out here"):
        checked("jigsaw_classify", regularise={"max_length": 32})
    with pytest.raises(UserError, match="regularise: 'steps' follows from 'epochs' and 'train_batch_size'"):
        checked("jigsaw_classify", regularise={"steps": 50})
    with pytest.raises(UserError, match="regularise: unknown key 'samplse'; did you mean 'samples'"):
        checked("jigsaw_classify", regularise={"samplse": 50})


def test_a_comment_is_cut_so_far_that_its_verdict_stays(tiny_checkpoints, tmp_path):
    comments = ["word " * 200, "short", "A" * 2000]
    given = {"weights_of": lambda *_: tiny_checkpoints["gpt2"], "labelled_texts": lambda *_: pd.DataFrame(
        {"text": comments, "label": [1, 0, 1], "group": range(3)})}  # fmt: skip
    made = jigsaw(tmp_path, "-question", "-shorten", "-05", "-08", given=given, max_length=64, max_words=100)
    cut = made["comments"]["text"].tolist()
    assert set(cut[0].split()) == {"word"} and cut[1] == "short" and set(cut[2]) == {"A"}
    rows = encode(made["base_tokenizer"], [""] * 3, made["as_corpus"](made["comments"])["text"], [0.0] * 3, 64)
    ends = [made["base_tokenizer"].decode(row.ids[-4:]) for row in rows]
    assert [text.split()[-1].rpartition(":")[2].strip() for text in ends] == ["yes", "no", "yes"], ends
    with pytest.raises(UserError, match="'max_length: 8' has no room for the question; raise it"):
        jigsaw(tmp_path / "other", "-question", "-shorten", "-05", given=given, max_length=8)


def test_groups_of_texts_stay_on_one_side(tmp_path):
    table = pd.DataFrame({"text": [f"text {n}" for n in range(40)], "label": [0, 1] * 20, "group": np.arange(40) // 4})
    given = {"labelled_texts": lambda *_: table}
    comments = jigsaw(tmp_path, "-05", given=given | {"shorten": str}, test_fraction=0.2)["comments"]
    sides = comments.assign(group=table["group"]).groupby("group")["split"].nunique()
    assert (sides == 1).all() and (comments["split"] == "test").sum() == 8


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_classifier_trained_with_an_adapter_leaves_a_plain_model(family, tiny_checkpoints, tmp_path):
    """The language model on its backbone shares the classifier's merged weights; the head is saved with it."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

    comments = pd.DataFrame({"text": ["a fine day", "you fool"] * 4, "label": [0, 1] * 4, "split": "train"})

    def train(folder: Path) -> tuple[Path, Path]:
        given = {"comments": comments, "train": comments, "base": tiny_checkpoints[family]}
        made = jigsaw(folder, "-11", "-12", "-13", given=given, condition="sft-classification", tuning="lora",
                      learning_rate=1e-2, train_batch_size=4, epochs=2.0)  # fmt: skip
        return made["weights"], made["classifier"]

    weights, classifier = train(tmp_path)
    assert not (classifier / "adapter_config.json").exists()
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny_checkpoints[family], weights)
    )
    detector = AutoModelForSequenceClassification.from_pretrained(classifier).base_model.state_dict()
    backbone = {name.split(".", 1)[1]: value for name, value in after.items() if not name.startswith("lm_head")}
    assert set(backbone) == set(detector) and all(torch.equal(backbone[name], detector[name]) for name in backbone)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("norm" not in name and "wte" not in name and "embed" not in name for name in changed)
    set_seed(0)
    untrained = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoints[family], num_labels=2).score.weight
    head = load_file(classifier / "model.safetensors")["score.weight"]
    assert head.shape == untrained.shape and not torch.equal(head, untrained)
    # Whatever was random before, a seed gives the same head and adapter to start from.
    torch.manual_seed(1)
    again, _ = train(tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again/classifier/model.safetensors")["score.weight"], head)
    repeated = AutoModelForCausalLM.from_pretrained(again).state_dict()
    assert all(torch.equal(repeated[name], after[name]) for name in after)


def test_what_is_not_used_of_prompts_and_stored_scores_is_recorded(tmp_path, monkeypatch):
    """Of the stage that trains on labelled comments: one blank prompt, and one response of 30 that is malformed."""
    rows = [{"prompt": {"text": text}} for text in ("one", " ", "two")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.75}}}}
    responses = [{"query": f"text {number}", "response": answer} for number in range(29)] + [{"query": "a"}]
    (tmp_path / "scores_en.json").write_text("\n".join(map(json.dumps, responses)))
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))

    def generate(weights, prompts, sampling, folder, **_):
        return prompts.assign(continuation=["text 1", "text 2"], sample=0, empty=False)

    settings = {"scorer": f"stored:{tmp_path / 'scores_en.json'}", "bootstrap_samples": 10,
                "prompts_source": "real-toxicity-prompts", "prompts_folder": str(tmp_path)}  # fmt: skip
    given = {"generate": generate, "weights": tmp_path, "intervals": {"samples": 10}}
    made = jigsaw(tmp_path / "stage", "-19", given=given, **settings)
    assert made["continuations"]["toxicity"].tolist() == [0.75, 0.75]
    manifest = made["stage"].finish()
    assert manifest["skipped"]["blank"] == 1 and manifest["scorer_skipped"]["rejected"] == 1
