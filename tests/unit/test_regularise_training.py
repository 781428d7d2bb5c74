"""Rows, corpus, schedules and the two trainers of attribute control, on tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from polydetox.attribute_control import corpus as corpora
from polydetox.attribute_control import oracle
from polydetox.attribute_control.body import Body, Features
from polydetox.attribute_control.head import NadoHead, make_head
from polydetox.attribute_control.methods import _cost, _devices, _rows, plan
from polydetox.attribute_control.nado import regularised_loss, target_log_probabilities, token_kl
from polydetox.attribute_control.rows import Row, batches_of, collate, encode, learnt, with_end
from polydetox.attribute_control.training import (
    NextToken,
    RegularisedTrainer,
    Regulariser,
    _arguments,
    text_loss,
    train_head,
)
from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.models.checkpoints import on_one_device
from tiny import tiny_model, tiny_tokenizer

PADDING = 0


# --- rows -------------------------------------------------------------------------------------------------------


def test_what_is_learnt_begins_where_the_prompt_ends():
    tokenizer = tiny_tokenizer()
    prompts = ["The neighbours", "", "The neighbours are loud", "The neigh"]
    texts = ["The neighbours are loud again", "are loud", "The neighbours are loud", "The neighbours are"]
    rows = encode(tokenizer, prompts, texts, [1.0, 0.0, 1.0, 1.0], 64)
    assert [row.row for row in rows] == [0, 1, 3], "a text that is all prompt has nothing to learn"
    decoded = [tokenizer.decode(row.ids[row.start :]).strip() for row in rows]
    assert decoded[0] == "are loud again" and decoded[1] == "are loud"
    assert decoded[2].endswith("are"), "the token in which prompt and text part is learnt"
    assert all(row.start >= 1 for row in rows)
    assert len(encode(tokenizer, prompts[:1], texts[:1], [1.0], 3)[0].ids if rows[0].start < 3 else []) <= 3

    batch = collate(rows, PADDING)
    mask = learnt(batch)
    for place, row in enumerate(rows):
        marked = batch["input_ids"][place, 1:][mask[place]].tolist()
        assert marked == row.ids[row.start :]


def test_a_sample_that_ended_by_itself_learns_its_end():
    rows = [Row(0, [2, 5, 6], 1, 1.0), Row(2, [2, 5, 7], 1, 0.0), Row(3, [2, 5, 7, 8], 1, 0.0)]
    ended = with_end(rows, [False, True, True, False], end=1, max_length=4)
    assert [row.ids for row in ended] == [[2, 5, 6, 1], [2, 5, 7], [2, 5, 7, 8]]
    assert learnt(collate(ended[:1], PADDING)).tolist() == [[True, True, True]]


def test_a_place_in_the_stream_of_batches_depends_on_its_number_alone():
    rows = [Row(number, [2] * (3 + number % 5), 1, 1.0) for number in range(22)]
    whole = batches_of(rows, 4, seed=1, first=0, count=12)
    parts = [row for first in (0, 3, 6, 9) for row in batches_of(rows, 4, seed=1, first=first, count=3)]
    assert whole == parts and len(whole) == 48
    epochs = [[row.row for row in whole[start : start + 20]] for start in (0, 20)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]
    assert len(batches_of(rows[:2], 4, seed=1, first=0, count=3)) == 6, "fewer rows than a batch has"


# --- the corpus -------------------------------------------------------------------------------------------------


def test_a_corpus_from_files_of_both_data_sets(tmp_path, monkeypatch):
    toxic = [f"statement number {number} of the first kind" for number in range(20)]
    pd.DataFrame({
        "generation": [*toxic, "a kind remark about some neighbours"], "prompt_label": [1] * 20 + [0],
    }).to_csv(tmp_path / "toxigen.csv")  # fmt: skip
    folder = tmp_path / "wikitext"
    folder.mkdir()
    lines = [" = Heading = ", " "] + [
        f" The bridge , built in 19{year} , is 1 @,@ 200 m long and well @-@ known ." for year in range(10, 30)
    ]
    (folder / "wiki.train.tokens").write_text("\n".join(lines))
    (folder / "wiki.test.tokens").write_text(" This line of the test split must not be read at all here .")
    settings = checked("control_corpus",
        toxigen=str(tmp_path / "toxigen.csv"), wikitext=str(folder), scorer="lexicon", rows_per_domain=16,
        prompt_words=3,
    )  # fmt: skip
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    table, evaluated = corpora.make_corpus(settings, Stage("control_corpus", tmp_path / "out", {}))
    assert evaluated == 0 and table["domain"].value_counts().to_dict() == {"toxic": 16, "neutral": 16}
    assert table["row"].tolist() == list(range(32)) and list(table) == corpora.COLUMNS
    neutral = table[table["domain"] == "neutral"]
    assert neutral["text"].str.fullmatch(r"The bridge, built in 19\d\d, is 1,200 m long and well-known\.").all()
    assert (neutral["prompt"] == "The bridge, built").all()
    assert not table["text"].str.contains("kind remark|Heading|test split").any()
    for _, rows in table.groupby("domain"):
        assert (rows["split"] == "held_out").sum() in (1, 2)
    again, _ = corpora.make_corpus(settings, Stage("control_corpus", tmp_path / "out", {}))
    pd.testing.assert_frame_equal(table, again)


def test_statements_of_evaluated_prompts_are_not_trained_on(tmp_path, monkeypatch):
    """ToxiGen is both corpus and prompts: two prompts, of which the first is evaluated."""
    first, second = "- They are loud\\n- They are rude\\n-", "- They cheat\\n- They lie\\n-"
    rows = [
        (first, "They are late", 1),  # generated from the evaluated prompt
        (first, "Some are early", 0),
        (second, "they ARE late!", 1),  # the same text from another one
        (second, "They are rude.", 1),  # stands in the list of the evaluated one
        (second, "Some are early.", 1),
        (second, "They lie", 1),  # stands in the other list
        (second, "They steal", 1),
        (second, "Most are kind", 0),
        (None, "They shout", 1),
    ]
    raw = tmp_path / "toxigen"
    raw.mkdir()
    pd.DataFrame(rows, columns=["prompt", "generation", "prompt_label"]).to_parquet(raw / "train.parquet")
    # The annotated part does not say what a statement was generated from.
    human = pd.DataFrame({"text": ["They are  late", "They brag", "They are loud"], "toxicity_human": [5.0, 4.0, 4.5]})
    human.to_parquet(raw / "annotated.parquet")
    kept = ["They brag", "They lie", "They steal", "They shout"]
    lines = [f" The bridge was built in 19{year} , as far as one can know ." for year in range(10, 30)]
    (tmp_path / "wiki.train.tokens").write_text("\n".join(lines))
    told = {"toxigen": str(raw), "wikitext": str(tmp_path / "wiki.train.tokens"), "scorer": "lexicon",
            "prompts_source": "toxigen", "prompts_folder": str(raw)}  # fmt: skip
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    settings, stage = checked("control_corpus", **told, prompt_limit=1), Stage("control_corpus", tmp_path / "out", {})
    corpus, evaluated = corpora.make_corpus(settings, stage)
    assert sorted(corpus.loc[corpus["domain"] == "toxic", "text"]) == sorted(kept) and evaluated == 6
    metrics = corpora.corpus_metrics(corpus, evaluated, settings)
    assert metrics["evaluated_left_out"] == 6
    assert corpora.summary_of(metrics).endswith(" 6 toxic statements that belong to evaluated prompts were left out.")
    # Without a limit both prompts are evaluated, and two statements have neither.
    corpus, evaluated = corpora.make_corpus(checked("control_corpus", **told), stage)
    assert sorted(corpus.loc[corpus["domain"] == "toxic", "text"]) == ["They brag", "They shout"] and evaluated == 8
    (raw / "annotated.parquet").unlink()
    with pytest.raises(UserError, match=r"6 of 7 toxic statements belong to evaluated prompts.*'prompts: limit:'"):
        corpora.make_corpus(checked("control_corpus", **told), stage)


def test_the_annotated_release_is_read_and_other_files_refused(tmp_path):
    human = pd.DataFrame({"text": ["one two", "three four", "five six"], "toxicity_human": [4.5, 1.0, 3.7]})
    human.to_parquet(tmp_path / "annotated.parquet")
    file = tmp_path / "annotated.parquet"
    assert corpora.toxic_statements(file, 48)[0]["text"].tolist() == ["one two", "five six"]
    assert corpora.toxic_statements(file, 1)[0]["text"].tolist() == ["one", "five"]
    pd.DataFrame({"text": [" ".join(["word"] * 12)]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="is this ToxiGen"):
        corpora.toxic_statements(tmp_path / "other.parquet", 48)


def test_the_packaged_prose_is_plain_english():
    table = corpora.packaged_prose(48)
    assert len(table) > 500 and not table["text"].duplicated().any()
    assert table["text"].str.split().str.len().between(10, 48).all()
    assert not table["text"].str.contains(r"::|__|\(\)").any()


# --- the schedules ----------------------------------------------------------------------------------------------


def jobs_of(tmp_path: Path, **settings) -> list[list[tuple[str, int, str, str]]]:
    steps = plan(checked("regularise", iterations=3, **settings), Path("/base"), tmp_path)
    return [[(job.kind, job.number, Path(job.weights).parent.name, Path(job.head).parent.name) for job in step]
            for step in steps]  # fmt: skip


def test_the_schedules(tmp_path):
    """Kind, iteration, the iteration whose weights are read, and the one whose head is."""
    assert jobs_of(tmp_path, schedule="sequential") == [
        [("head", 1, "", "")], [("model", 1, "", "01")], [("head", 2, "01", "01")], [("model", 2, "01", "02")],
        [("head", 3, "02", "02")], [("model", 3, "02", "03")],
    ]  # fmt: skip
    assert jobs_of(tmp_path, schedule="parallel") == [
        [("head", 1, "", "")], [("model", 1, "", "01")],
        [("head", 2, "01", "01"), ("model", 2, "01", "01")], [("model", 3, "02", "02")],
    ]  # fmt: skip
    assert [step[0][0] for step in jobs_of(tmp_path, algorithm="plain")] == ["model"] * 3
    assert jobs_of(tmp_path, algorithm="nado") == [[("head", 1, "", "")]]


def test_a_second_gpu_that_is_not_there_is_said(monkeypatch):
    for gpus, asked, expected in [(0, None, 1), (0, 2, 2), (1, None, 1), (2, None, 2), (2, 1, 1)]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert _devices(checked("regularise", devices=asked)) == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="needs two GPUs"):
        _devices(checked("regularise", devices=2, schedule="parallel"))
    assert _devices(checked("regularise", devices=2, algorithm="plain")) == 2, "which has no use for a second one"


def test_two_devices_last_as_long_as_the_longer_part_from_the_second_iteration_on():
    iterations = pd.DataFrame({
        "iteration": [0, 1, 2, 3], "head_seconds": [np.nan, 5.0, 7.0, np.nan], "model_seconds": [np.nan, 2.0, 4.0, 6.0],
    })  # fmt: skip
    costs = {schedule: _cost(checked("regularise", schedule=schedule), iterations, "seconds")
             for schedule in ("sequential", "parallel")}  # fmt: skip
    assert costs["sequential"] == {"head_seconds": 12.0, "model_seconds": 12.0, "two_device_seconds": 24.0}
    assert costs["parallel"]["two_device_seconds"] == (5 + 2) + 7 + 6
    plain = _cost(checked("regularise", schedule="parallel", algorithm="plain"), iterations, "seconds")
    assert plain["two_device_seconds"] == 24.0, "which has no schedule"


def test_filtering_asks_the_oracle_about_what_is_learnt(monkeypatch):
    """Not the scores of the corpus, which another scorer may have given it."""

    class NoBad(oracle.Oracle):
        def __init__(self, *_):
            self.threshold = 0.5

        def toxicity(self, texts):
            return np.array([float("bad" in text) if text.strip() else np.nan for text in texts])

    monkeypatch.setattr(oracle, "Oracle", NoBad)
    corpus = pd.DataFrame({
        "row": range(5), "prompt": ["They are", "bad people", "They are", "They are", "They are"],
        "text": ["They are bad", "bad people sing", "They are bad", "They are ", "They are kind"],
        "domain": ["toxic", "toxic", "toxic", "neutral", "neutral"], "toxicity": [0.0, 1.0, 0.0, 0.0, 1.0],
        "split": ["train", "train", "held_out", "train", "train"],
    })  # fmt: skip
    kept = _rows(checked("regularise", algorithm="filtering"), corpus)
    assert kept["row"].tolist() == [1, 2, 4], "rejected, and what it cannot judge, is not trained on"
    with pytest.raises(UserError, match="rejects every row"):
        _rows(checked("regularise", algorithm="filtering"), corpus[corpus["row"].isin([0, 2])])


# --- the trainers -----------------------------------------------------------------------------------------------


@pytest.fixture
def setting(tmp_path, tiny_checkpoints):
    """A model, its body, a head that says something, and rows of which only some have a lambda."""
    weights = tiny_checkpoints["llama"]
    settings = checked("regularise", head_rank=4, batch_size=3, warmup_steps=0, learning_rate=1e-3)
    model = tiny_model("llama", len(tiny_tokenizer()))
    body = Body(weights, settings, "float32")
    head = make_head(model, "low-rank", 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    ids = torch.randint(4, 300, (3, 9), generator=generator).tolist()
    rows = [Row(0, ids[0], 2, 2.0), Row(1, ids[1][:6], 1, 0.0), Row(2, ids[2][:7], 3, 0.5)]
    return model, body, head, rows


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_trainers_loss_is_the_formula(setting, direction, tmp_path):
    model, body, head, rows = setting
    features = Features(
        body.model, [row for row in rows if row.label > 0], PADDING, 2, tmp_path / "features.safetensors"
    )
    regulariser = Regulariser(head, body, features, 1.5, direction)
    trainer = RegularisedTrainer(regulariser=regulariser, model=model, rows=rows, padding=PADDING,
                                 arguments=_arguments(tmp_path / "out", 0, per_device_train_batch_size=3))  # fmt: skip
    loss = trainer.compute_loss(model, collate(rows, PADDING)).item()
    total = []
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
            log_p = output.logits[0, row.start - 1 : -1].log_softmax(-1)
            states = output.hidden_states[-1][0, row.start - 1 : -1]
            log_q = target_log_probabilities(log_p, head(states, body.embedding), 1.5)
        tokens = ids[0, row.start :]
        kl = token_kl(log_q, log_p, direction)
        total.append(regularised_loss(log_p, tokens, kl, torch.full_like(kl, row.label)) * len(tokens))
    learnt_tokens = sum(len(row.ids) - row.start for row in rows)
    assert loss == pytest.approx(float(sum(total)) / learnt_tokens, rel=1e-4)
    # The file that keeps the hidden states gives the same.
    again = Features(body.model, [], PADDING, 2, tmp_path / "features.safetensors")
    inputs = {name: value[[0, 2]] for name, value in collate(rows, PADDING).items()}
    assert torch.equal(again.of(inputs), features.of(inputs))


def test_further_gpus_change_neither_the_batch_nor_the_model(tmp_path):
    """What a Trainer would do with them: a batch of twice the rows, and the model inside another module."""
    arguments = _arguments(tmp_path, 0, per_device_train_batch_size=3)
    arguments._n_gpu = 2
    assert arguments.train_batch_size == 6
    assert on_one_device(arguments).n_gpu == 1 and arguments.train_batch_size == 3


def test_a_new_head_regularises_nothing(setting, tmp_path):
    model, body, _, rows = setting
    regulariser = Regulariser(make_head(model, "full", 4), body, None, 1.0, "forward")
    arguments = _arguments(tmp_path, 0, per_device_train_batch_size=3)
    batch = collate(rows, PADDING)
    held = RegularisedTrainer(regulariser=regulariser, model=model, rows=rows, padding=PADDING, arguments=arguments)
    plain = RegularisedTrainer(regulariser=None, model=model, rows=rows, padding=PADDING, arguments=arguments)
    assert held.compute_loss(model, batch).item() == pytest.approx(plain.compute_loss(model, batch).item(), rel=1e-5)
    assert text_loss(model, rows, PADDING, 2) == pytest.approx(plain.compute_loss(model, batch).item(), rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_samplers_probabilities_at_single_positions(family):
    model = tiny_model(family, 300)
    rows = [Row(5, list(range(4, 12)), 2, 1.0), Row(7, list(range(20, 25)), 1, 0.0)]
    following = NextToken(model, Features(model, rows, PADDING, 2), rows[0], PADDING)
    batch = collate(rows, PADDING)
    found = following.log_probabilities(batch, torch.tensor([0, 1, 1]), torch.tensor([7, 0, 3]))
    with torch.no_grad():
        expected = torch.stack([
            model(torch.tensor([rows[0].ids])).logits[0, 7], model(torch.tensor([rows[1].ids])).logits[0, 0],
            model(torch.tensor([rows[1].ids])).logits[0, 3],
        ]).log_softmax(-1)  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("body_kind", ["frozen", "lora"])
def test_the_head_learns_which_token_decides(body_kind, tiny_checkpoints, tmp_path):
    """Texts are rejected exactly if they end in one token: the head tells them apart, and likes that token least."""
    settings = checked("regularise", head="full", body=body_kind, head_learning_rate=3e-2, head_epochs=8,
                                    head_batch_size=8, lora_rank=2, consistency_share=0.5)  # fmt: skip
    body = Body(tiny_checkpoints["llama"], settings, "float32")
    sampler = tiny_model("llama", len(tiny_tokenizer()))
    bad, rng = 50, np.random.default_rng(0)
    rows = []
    for number in range(48):
        ids = [2, *rng.integers(100, 110, 5).tolist()]
        if number % 2:
            ids[-1] = bad
        rows.append(Row(number, ids, 1, float(number % 2 == 0)))
    head = make_head(sampler, "full", 4)
    figures = train_head(head, body, sampler, rows[:36], rows[36:], settings, PADDING, tmp_path)
    assert figures["auc"] > 0.9
    with torch.no_grad():
        batch = collate(rows[:1], PADDING)
        values = head(body.hidden(batch)[0, -2], body.embedding)
    assert values[bad] < values[100:110].min()


def test_a_head_with_an_adapted_body_is_gone_on_with(tiny_checkpoints, tmp_path):
    settings = checked("regularise", body="lora", lora_rank=2)
    body = Body(tiny_checkpoints["llama"], settings, "float32")
    with torch.no_grad():
        for name, weight in body.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    body.save_adapter(tmp_path / "adapter")
    batch = collate([Row(0, [2, 5, 6, 7], 1, 1.0)], PADDING)
    again = Body(tiny_checkpoints["llama"], settings, "float32", tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(again.hidden(batch), body.hidden(batch), atol=1e-5)
        assert not torch.allclose(
            body.hidden(batch), Body(tiny_checkpoints["llama"], settings, "float32").hidden(batch)
        )
    assert isinstance(make_head(body.model, "tied", 4), NadoHead)


def test_a_head_that_was_stopped_after_its_samples_keeps_what_they_cost(tiny_checkpoints, tmp_path, monkeypatch):
    from polydetox.attribute_control import jobs, training
    from polydetox.core.artifacts import read_json, write_json, write_parquet

    prompts = [f"The cat {word}" for word in ("sat", "ran", "ate", "slept")]
    corpus = pd.DataFrame({"prompt": prompts, "domain": ["toxic", "neutral"] * 2, "split": "train"})
    write_parquet(tmp_path / jobs.CORPUS, corpus)
    weights = str(tiny_checkpoints["llama"])
    settings = checked("regularise", scorer="lexicon", samples=8, samples_per_prompt=2, max_new_tokens=4,
                       engine="transformers")  # fmt: skip
    job = jobs.Job("head", settings.model_dump(), weights, weights, str(tmp_path), 1)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_head", stop)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(job)
    assert not job.is_done()
    samples = (job.folder / "samples.parquet").read_bytes()
    spent = read_json(job.folder / jobs.SAMPLING)
    assert spent["seconds"] > 0.0 and spent["cpu_seconds"] > 0.0
    # As if it had taken long, so that nothing which the second attempt does can be taken for it.
    write_json(job.folder / jobs.SAMPLING, {"seconds": 5000.0, "cpu_seconds": 3000.0})
    monkeypatch.setattr(training, "train_head", lambda *_: {"auc": 0.5})
    jobs.run(job)
    told = read_json(job.folder / jobs.HEAD)
    assert 5000.0 <= told["sampling_seconds"] <= told["seconds"] < 5600.0
    assert 3000.0 < told["cpu_seconds"] < 3600.0
    assert (job.folder / "samples.parquet").read_bytes() == samples


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_reinforcement_learning_with_an_adapter_leaves_a_plain_model(family, tiny_checkpoints, tmp_path, monkeypatch):
    """Against a reward that falls on one letter: the adapter is merged, and what it does not adapt stays as it was."""
    from polydetox.attribute_control import methods, rl
    from polydetox.models.checkpoints import load_causal_lm

    class Letter:
        def toxicity(self, texts):
            return np.array([float("e" in text) for text in texts])

        def satisfied(self, toxicity):
            return 1.0 - toxicity

    monkeypatch.setattr(rl.Oracle, "of", lambda settings: Letter())
    settings = checked("regularise",
        algorithm="rl", tuning="lora", lora_rank=2, iterations=1, warmup_steps=0, max_new_tokens=4,
        rl_steps=2, rl_prompts=2, rl_generations=2, rl_learning_rate=1e-2,
    )  # fmt: skip
    rows = pd.DataFrame({"row": range(4), "prompt": ["The", "Der", "La", "I"], "domain": ["toxic", "neutral"] * 2,
                         "text": ["The neighbours are", "Der Nachbar ist", "La capital de", "It is loud"],
                         "toxicity": 0.5, "split": ["train", "train", "train", "held_out"]})  # fmt: skip
    methods.write_parquet(tmp_path / methods.CORPUS, rows.assign(weight=1.0))
    rl.train_rl(settings, tiny_checkpoints[family], tmp_path)
    before, after = (load_causal_lm(path, torch.float32).state_dict()
                     for path in (tiny_checkpoints[family], tmp_path / "01/weights"))  # fmt: skip
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name].cpu(), after[name].cpu())}
    assert changed and all("norm" not in name and "wte" not in name and "embed" not in name for name in changed)
