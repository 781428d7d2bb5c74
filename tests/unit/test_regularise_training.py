"""Rows, corpus, schedules and the two trainers of attribute control, on tiny models."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from notebook_cells import packaged_prose, some_cells
from polydetox.attribute_control import corpus as corpora
from polydetox.attribute_control.head import NadoHead
from polydetox.attribute_control.nado import target_log_probabilities
from polydetox.attribute_control.training import Features, LossTrainer, Row, collate, encode, learnt
from polydetox.core.artifacts import Stage, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.models.checkpoints import load_causal_lm, on_one_device
from polydetox.scoring.base import Score, missing
from tiny import tiny_model, tiny_tokenizer

PADDING = 0
# The cells of the notebook regularise that only import and define.
DEFINITIONS = ("-03", "-text-loss", "-ends", "-losses", "-backbone", "-next-token", "-new-head", "-batches")


def regularise(settings, folder: Path, *cells: str, **given) -> dict:
    """The namespace of the notebook regularise after its definitions and some of its cells."""
    stage = Stage("regularise", folder / "stage", {})
    return some_cells("regularise", settings, stage, (*DEFINITIONS, *cells), **given)


@cache
def defined() -> SimpleNamespace:
    """The functions and classes of those cells."""
    return SimpleNamespace(**some_cells("regularise", None, None, DEFINITIONS))


def make_corpus(folder: Path, **settings) -> dict:
    """The namespace of the notebook control_corpus."""
    return some_cells("control_corpus", checked("control_corpus", **settings), Stage("control_corpus", folder, {}))


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
    ended = defined().with_end(rows, [False, True, True, False], end=1, max_length=4)
    assert [row.ids for row in ended] == [[2, 5, 6, 1], [2, 5, 7], [2, 5, 7, 8]]
    assert learnt(collate(ended[:1], PADDING)).tolist() == [[True, True, True]]


def test_a_place_in_the_stream_of_batches_depends_on_its_number_alone():
    rows = [Row(number, [2] * (3 + number % 5), 1, 1.0) for number in range(22)]
    whole = defined().batches_of(rows, 4, seed=1, first=0, count=12)
    parts = [row for first in (0, 3, 6, 9) for row in defined().batches_of(rows, 4, seed=1, first=first, count=3)]
    assert whole == parts and len(whole) == 48
    epochs = [[row.row for row in whole[start : start + 20]] for start in (0, 20)]
    assert all(len(set(epoch)) == 20 for epoch in epochs) and epochs[0] != epochs[1]
    assert len(defined().batches_of(rows[:2], 4, seed=1, first=0, count=3)) == 6, "fewer rows than a batch has"


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
    settings = {"toxigen": str(tmp_path / "toxigen.csv"), "wikitext": str(folder), "scorer": "lexicon",
                "rows_per_domain": 16, "prompt_words": 3}  # fmt: skip
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    made = make_corpus(tmp_path / "out", **settings)
    table = pd.read_parquet(tmp_path / "out/corpus.parquet")
    assert made["evaluated"] == 0 and table["domain"].value_counts().to_dict() == {"toxic": 16, "neutral": 16}
    assert table["row"].tolist() == list(range(32)) and list(table) == corpora.COLUMNS
    neutral = table[table["domain"] == "neutral"]
    assert neutral["text"].str.fullmatch(r"The bridge, built in 19\d\d, is 1,200 m long and well-known\.").all()
    assert (neutral["prompt"] == "The bridge, built").all()
    assert not table["text"].str.contains("kind remark|Heading|test split").any()
    for _, rows in table.groupby("domain"):
        assert (rows["split"] == "held_out").sum() in (1, 2)
    pd.testing.assert_frame_equal(table, make_corpus(tmp_path / "again", **settings)["corpus"][corpora.COLUMNS])


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
    settings = {"toxigen": str(raw), "wikitext": str(tmp_path / "wiki.train.tokens"), "scorer": "lexicon",
                "prompts_source": "toxigen", "prompts_folder": str(raw)}  # fmt: skip
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "runs"))
    made = make_corpus(tmp_path / "out", **settings, prompt_limit=1)
    corpus = made["corpus"]
    assert sorted(corpus.loc[corpus["domain"] == "toxic", "text"]) == sorted(kept) and made["evaluated"] == 6
    assert read_json(tmp_path / "out/metrics.json")["evaluated_skipped"] == 6
    assert made["closing"].endswith(" 6 toxic statements that belong to evaluated prompts were skipped.")
    # Without a limit both prompts are evaluated, and two statements have neither.
    made = make_corpus(tmp_path / "out", **settings)
    corpus = made["corpus"]
    assert sorted(corpus.loc[corpus["domain"] == "toxic", "text"]) == ["They brag", "They shout"]
    assert made["evaluated"] == 8
    (raw / "annotated.parquet").unlink()
    with pytest.raises(UserError, match=r"6 of 7 toxic statements belong to evaluated prompts.*'prompts: limit:'"):
        make_corpus(tmp_path / "out", **settings)


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
    table = packaged_prose(48).to_frame()
    assert len(table) > 500 and not table["text"].duplicated().any()
    assert table["text"].str.split().str.len().between(10, 48).all()
    assert not table["text"].str.contains(r"::|__|\(\)").any()


# --- the schedules ----------------------------------------------------------------------------------------------


def trainings(folder: Path, **settings) -> list[list[tuple[str, int, str, str]]]:
    """What the loop over iterations trains: kind, iteration, the iteration whose weights are read, and whose head is.

    With two devices, so that what may run at once is one list.
    """
    steps: list = []

    def note(kind, number, model, head):
        steps.append((kind, number, model.parent.name, head.parent.name if head else ""))

    def together(jobs):
        before = len(steps)
        for job in jobs:
            job()
        steps[before:] = [steps[before:]]

    given = {"state": folder, "weights": Path("/base"), "training": SimpleNamespace(side_by_side=together),
             "train_head": lambda *of: note("head", *of), "train_model": lambda *of: note("model", *of)}  # fmt: skip
    regularise(checked("regularise", **{"iterations": 3, "devices": 2} | settings), folder, "-33", "-34", **given)
    return [step if isinstance(step, list) else [step] for step in steps]


def test_the_schedules(tmp_path):
    assert trainings(tmp_path, schedule="sequential") == [
        [("head", 1, "", "")], [("model", 1, "", "01")], [("head", 2, "01", "01")], [("model", 2, "01", "02")],
        [("head", 3, "02", "02")], [("model", 3, "02", "03")],
    ]  # fmt: skip
    parallel = [
        [("head", 1, "", "")], [("model", 1, "", "01")],
        [("head", 2, "01", "01"), ("model", 2, "01", "01")], [("model", 3, "02", "02")],
    ]  # fmt: skip
    assert trainings(tmp_path, schedule="parallel") == parallel
    assert trainings(tmp_path, schedule="parallel", algorithm="pr-finetune") == parallel
    in_turns = trainings(tmp_path, schedule="parallel", devices=1)
    assert in_turns == [[training] for step in parallel for training in step]
    assert trainings(tmp_path, algorithm="plain") == [
        [("model", number, before, "")] for number, before in ((1, ""), (2, "01"), (3, "02"))
    ]
    assert trainings(tmp_path, algorithm="nado") == [[("head", 1, "", "")]]


def test_a_second_gpu_that_is_not_there_is_reported(monkeypatch, tmp_path):
    def two_devices(**settings):
        return regularise(checked("regularise", **settings), tmp_path, "-33")["two_devices"]

    for gpus, asked, expected in [(0, None, False), (0, 2, True), (1, None, False), (2, None, True), (2, 1, False)]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert two_devices(devices=asked, schedule="parallel") == expected
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"needs two GPUs, .*CUDA_VISIBLE_DEVICES=0,1"):
        two_devices(devices=2, schedule="parallel")
    assert not two_devices(devices=2, algorithm="plain"), "which has no use for a second one"


def test_two_devices_last_as_long_as_the_longer_part_from_the_second_iteration_on(tmp_path):
    iterations = pd.DataFrame({
        "iteration": [0, 1, 2, 3], "head_seconds": [np.nan, 5.0, 7.0, np.nan], "model_seconds": [np.nan, 2.0, 4.0, 6.0],
    })  # fmt: skip

    def cost(**settings):
        made = regularise(checked("regularise", **settings), tmp_path, "-33", "-43", by_iteration=iterations)
        return made["cost"]("seconds")

    assert cost(schedule="sequential") == {"head_seconds": 12.0, "model_seconds": 12.0, "two_device_seconds": 24.0}
    assert cost(schedule="parallel")["two_device_seconds"] == (5 + 2) + 7 + 6
    plain = cost(schedule="parallel", algorithm="plain")
    assert plain["two_device_seconds"] == 24.0, "which has no schedule"


def test_filtering_asks_the_oracle_about_what_is_learnt(tmp_path):
    """Not the scores of the corpus, which another scorer may have given it."""

    class NoBad:
        threshold = 0.5

        def results(self, texts, _):
            return [Score(float("bad" in text)) if text.strip() else missing("", final=False) for text in texts]

    def kept(rows):
        return regularise(checked("regularise", algorithm="filtering"), tmp_path, "-05", "-08", everything=rows,
                          CachedScorer=lambda _: NoBad())["corpus"]  # fmt: skip

    corpus = pd.DataFrame({
        "row": range(5), "prompt": ["They are", "bad people", "They are", "They are", "They are"],
        "text": ["They are bad", "bad people sing", "They are bad", "They are ", "They are kind"],
        "domain": ["toxic", "toxic", "toxic", "neutral", "neutral"], "toxicity": [0.0, 1.0, 0.0, 0.0, 1.0],
        "split": ["train", "train", "held_out", "train", "train"],
    })  # fmt: skip
    assert kept(corpus)["row"].tolist() == [1, 2, 4], "rejected, and what it cannot score, is not trained on"
    with pytest.raises(UserError, match="rejects every row"):
        kept(corpus[corpus["row"].isin([0, 2])])


# --- the trainers -----------------------------------------------------------------------------------------------


@pytest.fixture
def setting(tiny_checkpoints):
    """A model, its weights, a head that says something, and rows of which only some have a lambda."""
    model = tiny_model("llama", len(tiny_tokenizer()))
    head = defined().make_head(model, "low-rank", 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    ids = torch.randint(4, 300, (3, 9), generator=generator).tolist()
    rows = [Row(0, ids[0], 2, 2.0), Row(1, ids[1][:6], 1, 0.0), Row(2, ids[2][:7], 3, 0.5)]
    return model, tiny_checkpoints["llama"], head, rows


def losses(folder: Path, weights: Path, head: NadoHead, rows: list[Row], **settings):
    """The notebook's loss of a model without a target, and with that of a head."""
    head.save(folder / "head")
    made = regularise(checked("regularise", dtype="float32", batch_size=3, **settings), folder, "-23", "-24",
                      weights=weights, state=folder, train=rows, tokenizer=tiny_tokenizer())  # fmt: skip
    return made["model_loss"](None), lambda: made["model_loss"](made["load_target"](folder / "head"))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_loss_of_the_model_is_the_formula(setting, direction, tmp_path):
    model, weights, head, rows = setting
    _, regularised = losses(tmp_path, weights, head, rows, alpha=1.5, direction=direction)
    loss = regularised()(model, collate(rows, PADDING))[0].item()
    embedding = model.get_output_embeddings().weight
    total = []
    for row in rows:
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            output = model(ids, output_hidden_states=True)
            log_p = output.logits[0, row.start - 1 : -1].log_softmax(-1)
            states = output.hidden_states[-1][0, row.start - 1 : -1]
            log_q = target_log_probabilities(log_p, head(states, embedding), 1.5)
        tokens = ids[0, row.start :]
        kl = defined().token_kl(log_q, log_p, direction)
        total.append(defined().regularised_loss(log_p, tokens, kl, torch.full_like(kl, row.label)) * len(tokens))
    learnt_tokens = sum(len(row.ids) - row.start for row in rows)
    assert loss == pytest.approx(float(sum(total)) / learnt_tokens, rel=1e-4)
    # The file that keeps the hidden states gives the same.
    assert (tmp_path / "features.safetensors").is_file()
    assert regularised()(model, collate(rows, PADDING))[0].item() == loss


def test_further_gpus_change_neither_the_batch_nor_the_model(setting):
    """What a Trainer would do with them: a batch of twice the rows, and the model inside another module."""
    model, _, _, rows = setting
    trainer = LossTrainer(model, rows, lambda *_: None, padding=PADDING, batch_size=3, seed=0)
    trainer.args._n_gpu = 2
    assert trainer.args.train_batch_size == 6
    assert on_one_device(trainer.args).n_gpu == 1 and trainer.args.train_batch_size == 3


def test_a_new_head_regularises_nothing(setting, tmp_path):
    model, weights, _, rows = setting
    plain, regularised = losses(tmp_path, weights, defined().make_head(model, "full", 4), rows)
    batch = collate(rows, PADDING)
    expected = plain(model, batch)[0].item()
    assert regularised()(model, batch)[0].item() == pytest.approx(expected, rel=1e-5)
    assert defined().text_loss(model, rows, PADDING, 2) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_samplers_probabilities_at_single_positions(family):
    model = tiny_model(family, 300)
    rows = [Row(5, list(range(4, 12)), 2, 1.0), Row(7, list(range(20, 25)), 1, 0.0)]
    following = defined().NextToken(model, Features(model, rows, PADDING, 2), rows[0], PADDING)
    batch = collate(rows, PADDING)
    found = following.log_probabilities(batch, torch.tensor([0, 1, 1]), torch.tensor([7, 0, 3]))
    with torch.no_grad():
        expected = torch.stack([
            model(torch.tensor([rows[0].ids])).logits[0, 7], model(torch.tensor([rows[1].ids])).logits[0, 0],
            model(torch.tensor([rows[1].ids])).logits[0, 3],
        ]).log_softmax(-1)  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["frozen", "lora"])
def test_the_head_learns_which_token_decides(kind, tiny_checkpoints, tmp_path):
    """Texts are rejected exactly if they end in one token: the head tells them apart, and likes that token least."""
    settings = checked("regularise", head="full", backbone=kind, head_learning_rate=3e-2, head_epochs=8,
                       head_batch_size=8, lora_rank=2, consistency_fraction=0.5)  # fmt: skip
    backbone = defined().Backbone(tiny_checkpoints["llama"], settings, "float32")
    sampler = tiny_model("llama", len(tiny_tokenizer()))
    bad, rng = 50, np.random.default_rng(0)
    rows = []
    for number in range(48):
        ids = [2, *rng.integers(100, 110, 5).tolist()]
        if number % 2:
            ids[-1] = bad
        rows.append(Row(number, ids, 1, float(number % 2 == 0)))
    head = defined().make_head(sampler, "full", 4)
    made = regularise(settings, tmp_path, "-17", "-18", "-20", tokenizer=tiny_tokenizer())
    figures = made["fit_head"](head, backbone, sampler, rows[:36], rows[36:])
    assert figures["auc"] > 0.9
    with torch.no_grad():
        batch = collate(rows[:1], PADDING)
        values = head(backbone.hidden(batch)[0, -2], backbone.embedding)
    assert values[bad] < values[100:110].min()


def test_a_head_continues_with_its_adapted_backbone(tiny_checkpoints, tmp_path):
    settings = checked("regularise", backbone="lora", lora_rank=2)
    backbone = defined().Backbone(tiny_checkpoints["llama"], settings, "float32")
    with torch.no_grad():
        for name, weight in backbone.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    backbone.save_adapter(tmp_path)
    batch = collate([Row(0, [2, 5, 6, 7], 1, 1.0)], PADDING)
    again, new = (defined().Backbone(tiny_checkpoints["llama"], settings, "float32", head) for head in (tmp_path, None))
    with torch.no_grad():
        assert torch.allclose(again.hidden(batch), backbone.hidden(batch), atol=1e-5)
        assert not torch.allclose(backbone.hidden(batch), new.hidden(batch))
    assert isinstance(defined().make_head(backbone.model, "tied", 4), NadoHead)


@pytest.mark.parametrize("algorithm", ["regularised", "pr-finetune"])
def test_a_head_is_tested_with_the_link_that_it_is_fitted_with(algorithm, tmp_path):
    tokenizer = tiny_tokenizer()
    made = regularise(checked("regularise", algorithm=algorithm), tmp_path, "-18", tokenizer=tokenizer)
    rows = encode(tokenizer, ["The cat"] * 2, ["The cat sat", "The cat ran"], [1.0, 0.0], 64)
    head = SimpleNamespace(of_tokens=lambda states, *_: torch.full(states.shape[:2], 1.5))
    hidden = lambda batch: torch.zeros((*batch["input_ids"].shape, 2))  # noqa: E731
    found = made["evaluate_head"](head, None, hidden, rows, 2)
    r = 1 / (1 + np.exp(-1.5))
    fitted = r / (1 + r) if algorithm == "pr-finetune" else r
    assert found["held_out_bce"] == pytest.approx(-np.log([fitted, 1 - fitted]).mean(), abs=1e-5)


def test_pr_finetune_starts_from_the_base_model_and_hands_on_the_head(tiny_checkpoints, tmp_path):
    weights, tokenizer = tiny_checkpoints["llama"], tiny_tokenizer()
    prompts = [f"The cat {word}" for word in ("sat", "ran", "ate", "slept")]
    samples = pd.DataFrame(
        {
            "prompt": prompts,
            "continuation": [" on it", " to us", " the fish", " at home"],
            "toxicity": [0.1, 0.9, 0.4, 0.2],
            "satisfied": [1.0, 0.0, 1.0, 1.0],
            "truncated": True,
        }
    )
    cells = ("-10", "-15", "-16", "-17", "-18", "-20", "-21", "-23", "-24", "-pr-02", "-pr-03", "-26", "-27")
    settings = checked("regularise", algorithm="pr-finetune", label_power=1.0, steps=2, batch_size=4,
                       learning_rate=1e-2, warmup_steps=0, head="tied", head_learning_rate=1e-3,
                       dtype="float32")  # fmt: skip
    write_json(tmp_path / "base.json", {})
    made = regularise(settings, tmp_path, *cells, weights=weights, state=tmp_path, tokenizer=tokenizer,
                      sample=lambda *_: samples, held_out_losses=lambda _: {})  # fmt: skip
    for number in (1, 2):
        folder = tmp_path / f"{number:02d}"
        folder.mkdir()
        samples.to_parquet(folder / "samples.parquet")
        before = tmp_path / f"{number - 1:02d}"
        model = weights if number == 1 else before / "weights"
        made["train_head"](number, model, before / "head" if number > 1 else None)
        made["train_model"](number, model, folder / "head")
    heads = [NadoHead.load(tmp_path / number / "head").token_bias for number in ("01", "02")]
    # A second training of the same length from the first one's end goes on in its direction.
    assert torch.dot(heads[1], heads[0]) > 1.2 * torch.dot(heads[0], heads[0])
    starts = []
    given = {"load_causal_lm": lambda path, *_: starts.append(path) or load_causal_lm(path, torch.float32)}
    made = regularise(settings, tmp_path, *cells, weights=weights, state=tmp_path, tokenizer=tokenizer, sample=None,
                      held_out_losses=lambda _: {}, **given)  # fmt: skip
    (tmp_path / "02/model.json").unlink()
    made["train_model"](2, tmp_path / "01/weights", tmp_path / "02/head")
    assert starts == [weights, weights], "the model of the iteration before is not read"
    log = pd.read_parquet(tmp_path / "02/log.parquet")
    assert set(log["metric"]) == {"loss", "kl"} and log["step"].tolist() == [3, 3, 4, 4]


def test_the_target_of_pr_finetune_is_made_of_the_base_model(setting, tmp_path):
    model, weights, head, rows = setting
    head.save(tmp_path / "head")
    made = regularise(checked("regularise", algorithm="pr-finetune", dtype="float32"), tmp_path, "-pr-02",
                      weights=weights, tokenizer=tiny_tokenizer())  # fmt: skip
    found = made["load_base_target"](tmp_path / "head", rows)(collate(rows, PADDING))
    expected = []
    for row in rows:
        with torch.no_grad():
            output = model(torch.tensor([row.ids]), output_hidden_states=True)
        place = slice(row.start - 1, -1)
        r = head(output.hidden_states[-1][0, place], model.get_output_embeddings().weight).sigmoid()
        expected.append(output.logits[0, place].softmax(-1) * r)
    expected = torch.cat([part / part.sum(-1, keepdim=True) for part in expected])
    assert torch.allclose(found.exp(), expected, atol=1e-5)


def test_a_head_that_was_stopped_after_its_samples_keeps_what_they_cost(tiny_checkpoints, tmp_path):
    prompts = [f"The cat {word}" for word in ("sat", "ran", "ate", "slept")]
    corpus = pd.DataFrame({"prompt": prompts, "domain": ["toxic", "neutral"] * 2, "split": "train"})
    weights = tiny_checkpoints["llama"]
    settings = checked("regularise", scorer="lexicon", samples=8, samples_per_prompt=2, max_new_tokens=4,
                       engine="transformers")  # fmt: skip

    def train_head(fit_head):
        given = {"weights": weights, "state": tmp_path, "corpus": corpus, "tokenizer": tiny_tokenizer()}
        made = regularise(settings, tmp_path, "-05", "-12", "-13", "-15", "-21", fit_head=fit_head, **given)
        made["train_head"](1, weights, None)

    def stop(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "01"
    with pytest.raises(KeyboardInterrupt):
        train_head(stop)
    assert not (folder / "head.json").is_file()
    samples = (folder / "samples.parquet").read_bytes()
    spent = read_json(folder / "sampling.json")
    assert spent["seconds"] > 0.0 and spent["cpu_seconds"] > 0.0
    # As if it had taken long, so that nothing which the second attempt does can be taken for it.
    write_json(folder / "sampling.json", {"seconds": 5000.0, "cpu_seconds": 3000.0})
    train_head(lambda *_: {"auc": 0.5})
    figures = read_json(folder / "head.json")
    assert 5000.0 <= figures["sampling_seconds"] <= figures["seconds"] < 5600.0
    assert 3000.0 < figures["cpu_seconds"] < 3600.0
    assert (folder / "samples.parquet").read_bytes() == samples


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_reinforcement_learning_with_an_adapter_leaves_a_plain_model(family, tiny_checkpoints, tmp_path):
    """Against a reward that falls on one letter: the adapter is merged, and what it does not adapt stays as it was."""

    def oracle(texts):
        toxicity = np.array([float("e" in text) for text in texts])
        return toxicity, 1.0 - toxicity

    settings = checked("regularise",
        algorithm="rl", tuning="lora", lora_rank=2, iterations=1, warmup_steps=0, max_new_tokens=4,
        rl_steps=2, rl_prompts=2, rl_generations=2, rl_learning_rate=1e-2,
    )  # fmt: skip
    corpus = pd.DataFrame({"prompt": ["The", "Der", "La", "I"], "split": ["train", "train", "train", "held_out"]})
    made = regularise(settings, tmp_path, "-10", "-29", "-30", "-31", weights=tiny_checkpoints[family], state=tmp_path,
                      corpus=corpus, tokenizer=tiny_tokenizer(), make_oracle=lambda: oracle,
                      held_out_losses=lambda _: {})  # fmt: skip
    made["train_rl"]()
    before, after = (load_causal_lm(path, torch.float32).state_dict()
                     for path in (tiny_checkpoints[family], tmp_path / "01/weights"))  # fmt: skip
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name].cpu(), after[name].cpu())}
    assert changed and all("norm" not in name and "wte" not in name and "embed" not in name for name in changed)
