"""The probe, its texts and features, and the value vectors, against brute force and hand-made cases."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from notebook_cells import definitions, run_cell, some_cells, train_probe
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.data.labelled import read_labelled
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.neurons import random_neurons
from polydetox.mechanism.probe import Probe, logistic_regression, quality, split
from polydetox.mechanism.representations import kept
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def two_clouds():
    """Texts that the first direction separates; another is a thousand times larger and says nothing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    features = rng.normal(size=(400, 5)).astype(np.float32)
    features[:, 0] += 3.0 * labels
    features[:, 4] = 1000.0 + 1000.0 * features[:, 4]
    return features, labels


def alone(labels) -> pd.DataFrame:
    """Texts of one label each, every one a group of its own."""
    return pd.DataFrame({"label": labels, "group": range(len(labels))})


@pytest.mark.parametrize("fit", [
    lambda x, y: train_probe(x, y, learning_rate=1e-2, standardise=True),
    lambda x, y: train_probe(x, y, learning_rate=1e-2, standardise=True, weight_decay=0.1),
    logistic_regression,
])  # fmt: skip
def test_a_probe_finds_the_direction_that_separates(two_clouds, fit):
    features, labels = two_clouds
    probe = fit(features, labels)
    found = quality(probe, features, alone(labels))
    assert found["roc_auc"] > 0.97 and found["roc_auc_low"] <= found["roc_auc"] <= found["roc_auc_high"]
    direction = probe.weight * probe.scale
    assert abs(direction[0]) > 5 * np.abs(direction[1:]).max()


def test_adam_reaches_the_minimum_of_the_regularised_loss(two_clouds):
    """The mean loss plus weight decay has one minimum, which scikit-learn finds by another way."""
    from sklearn.linear_model import LogisticRegression

    features, labels = two_clouds
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    decay = 0.5
    wanted = LogisticRegression(C=1.0 / (decay * len(standard)), tol=1e-8).fit(standard, labels)
    probe = train_probe(standard, labels, learning_rate=1e-3, batch_size=100, epochs=400, weight_decay=decay)
    np.testing.assert_allclose(probe.weight, wanted.coef_[0], atol=5e-3)
    np.testing.assert_allclose(probe.bias, wanted.intercept_[0], atol=5e-3)


def test_quality_against_counting_pairs():
    probe = Probe(np.array([1.0], np.float32), -0.5, np.ones(1, np.float32))
    features = np.array([[0.1], [0.9], [0.4], [0.8], [0.2]], np.float32)
    labels = np.array([0, 1, 1, 0, 0])
    found = quality(probe, features, alone(labels))
    pairs = [(a > b) + 0.5 * (a == b) for a in features[labels == 1, 0] for b in features[labels == 0, 0]]
    assert found["roc_auc"] == pytest.approx(np.mean(pairs))
    assert found["accuracy"] == pytest.approx(3 / 5)  # 0.9 and the two smallest
    # Ranked 0.9+, 0.8-, 0.4+, ...: precision 1/1 and 2/3 at the two toxic ones.
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    lone = quality(probe, features[:1], alone(labels[:1]))
    assert lone["roc_auc"] is None and lone["accuracy"] == 1.0


def test_a_probe_is_tried_on_every_part_but_that_of_the_training():
    probe = Probe(np.ones(1, np.float32), 0.0, np.ones(1, np.float32))
    texts = alone([0, 0, 1, 1, 0]).assign(part=["train", "test", "test", "de", "de"])
    table = some_cells(
        "probe", checked("probe"), None, ("924e7e84", "probe-quality"), probes={"probe": probe}, texts=texts,
        features=np.arange(5.0, dtype=np.float32).reshape(5, 1), train=(texts["part"] == "train").to_numpy(),
    )["qualities"]  # fmt: skip
    assert dict(zip(table["texts_of"], table["roc_auc"], strict=True)) == {"test": 1.0, "de": 0.0}


def test_a_saved_probe_is_the_same(tmp_path):
    probe = Probe(np.array([1.5, -2.0], np.float32), 0.25, np.array([1.0, 3.0], np.float32))
    probe.save(tmp_path / "probe.safetensors")
    again = Probe.load(tmp_path / "probe.safetensors")
    assert (again.weight == probe.weight).all() and again.bias == 0.25 and (again.scale == probe.scale).all()


def test_no_prompt_is_split():
    table = pd.DataFrame({"group": np.repeat(np.arange(30), 4), "text": "x", "label": 0})
    parts = split(table, (0.1, 0.2), seed=3)
    assert table.assign(part=parts).groupby("group")["part"].nunique().max() == 1
    assert parts.value_counts().to_dict() == {"train": 84, "test": 24, "validation": 12}
    with pytest.raises(UserError, match="too few"):
        split(table.head(8), (0.1, 0.2), seed=0)


def written(file, table):
    {".csv": lambda: table.to_csv(file, index=False), ".parquet": lambda: table.to_parquet(file),
     ".jsonl": lambda: table.to_json(file, orient="records", lines=True)}[file.suffix]()  # fmt: skip
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("columns", [("text", "label"), ("comment_text", "toxic")])
def test_labelled_texts_of_every_kind_of_file(tmp_path, suffix, columns):
    table = pd.DataFrame({"id": [1, 2, 3], columns[0]: ["a fine day", " ", "you fool"], columns[1]: [0, 1, 1.0]})
    file = written(tmp_path / f"texts{suffix}", table)
    read, skipped = read_labelled(file)
    assert read.to_dict("list") == {"text": ["a fine day", "you fool"], "label": [0, 1]} and skipped.blank == 1


@pytest.mark.parametrize(("name", "content", "message"), [
    ("texts.csv", "words,label\na,1\n", "texts.csv:1: field 'text' is missing (it has: words, label)"),
    ("texts.csv", "text,mark\na,1\n", "texts.csv:1: field 'label' is missing (it has: text, mark)"),
    ("texts.csv", "text,label\na,1\nb,yes\n", "texts.csv:2: label yes (1 rows) is not one of 0, 1; say what each"),
    ("texts.jsonl", '{"text": "a", "label": [1]}', "texts.jsonl:1: field 'label' should be a label: a number, true"),
    ("texts.csv", "text,label\na,1\nb,\n", "texts.csv:2: field 'label' should be a label: a number, true"),
    ("texts.jsonl", "{broken", "texts.jsonl:1: not valid JSON"),
    ("texts.xlsx", "", "use one of .csv, .jsonl, .parquet"),
])  # fmt: skip
def test_bad_labelled_texts_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        read_labelled(tmp_path / name, 0.5)
    assert message in str(error.value) and name in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("given", "said", "wanted"), [
    # What the labels are, what the reader says of them, and the labels that are read: None for a row that is skipped.
    ([0, 1, 1], {}, [0, 1, 1]),
    ([-1, 0, 1], {-1: "skipped", 0: "neutral", 1: "toxic"}, [None, 0, 1]),
    ([1, 3, 5], {1: "neutral", 2: "neutral", 3: "skipped", 4: "toxic", 5: "toxic"}, [0, None, 1]),
    ([1.0, 2.0, 2.0], {"1": "toxic", 2: "neutral"}, [1, 0, 0]),
    ([0.5, 0.49, 1.0], "scores", [1, 0, 1]),
    ([True, False, True], {True: "toxic", False: "neutral"}, [1, 0, 1]),
    (["Toxic", "neutral", "unsure"], {"toxic": "toxic", "neutral": "neutral", "unsure": "skipped"}, [1, 0, None]),
])  # fmt: skip
def test_the_reader_says_what_a_label_means(tmp_path, suffix, given, said, wanted):
    texts = ["one", "two", "three"]
    file = written(tmp_path / f"texts{suffix}", pd.DataFrame({"text": texts, "label": given}))
    read, skipped = read_labelled(file, 0.5, checked("probe", labels=said).labels)
    assert dict(zip(read["text"], read["label"], strict=True)) == {
        text: label for text, label in zip(texts, wanted, strict=True) if label is not None
    }
    assert skipped.by_label == wanted.count(None)
    if skipped.by_label:
        assert skipped.record()["skipped"] == 1 and "1 rows skipped by their label" in str(skipped)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(("given", "said", "message"), [
    ([0, 1, -1, -1], {}, ":3: label -1 (2 rows) is not one of 0, 1; say what each label means in the parameter"),
    ([1, 3, 5, 1], {}, ":2: label 3 (1 rows), 5 (1 rows) is not one of 0, 1;"),
    ([0, 1, 0.3, 0.9], {}, ":3: label 0.3 (1 rows), 0.9 (1 rows) is not one of 0, 1;"),
    ([True, False, True, True], {}, ":1: label true (3 rows), false (1 rows) is not one of 0, 1;"),
    ([0.5, 0.1, -1, 2], "scores", ":3: label -1 (1 rows), 2 (1 rows) is not a score from 0 to 1;"),
    ([1, 2, 3, 4], {1: "neutral", 4: "toxic"}, ":2: label 2 (1 rows), 3 (1 rows) is not one of 1, 4;"),
    (["you are all fools", *"abc"], {}, ":1: label a text (1 rows), a (1 rows), b (1 rows), c (1 rows) is not one of"),
])  # fmt: skip
def test_a_label_of_which_nobody_said_what_it_means_is_refused(tmp_path, suffix, given, said, message):
    file = written(tmp_path / f"texts{suffix}", pd.DataFrame({"text": list("abcd"), "label": given}))
    with pytest.raises(UserError) as error:
        read_labelled(file, 0.5, checked("probe", labels=said).labels)
    assert f"{file}{message}" in str(error.value) and "fools" not in str(error.value)


def test_settings_of_labels_are_checked():
    for said in ({-1: "skip", 1: "toxic"}, "score", [0, 1]):
        with pytest.raises(UserError, match=r"labels.*give 'scores', or for each label one of toxic, neutral, skipped"):
            checked("probe", labels=said)
    assert checked("jigsaw_classify", labels={True: "toxic"}).labels == {"true": "toxic"}


# --- representations --------------------------------------------------------------------------------------------


def test_features_are_computed_once(tmp_path):
    file, features = tmp_path / "features.safetensors", np.arange(6.0, dtype=np.float32).reshape(2, 3)
    assert kept(file, ["a", "b"], lambda: features) is features
    assert (kept(file, ["a", "b"], lambda: pytest.fail("computed again")) == features).all()
    assert (kept(file, ["a", "c"], lambda: features + 1) == features + 1).all()
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        kept(file, ["a", "b"], lambda: pytest.fail("computed again"))


# --- value vectors ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def mlps(tokenizer):
    return MLPs(tiny_model("llama", len(tokenizer)))


def test_potential_sources_are_the_nearest_of_all_layers(mlps):
    rng = np.random.default_rng(1)
    probe = Probe(rng.normal(size=32).astype(np.float32), 0.0, rng.uniform(0.5, 2.0, 32).astype(np.float32))
    found = some_cells("value_vectors", checked("value_vectors", top=10), None,
                       ("04b1aab7", "vectors-cosine", "vectors-top"), mlps=mlps, probe=probe)["table"]  # fmt: skip
    brute = []
    for layer in range(2):
        for place, vector in enumerate(mlps.value_vectors(layer).numpy()):
            a, b = vector / probe.scale, probe.weight * probe.scale
            brute.append((float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), layer, place))
    wanted = sorted(brute, reverse=True)[:10]
    assert [(row.layer, row.neuron) for row in found.itertuples()] == [(layer, place) for _, layer, place in wanted]
    np.testing.assert_allclose(found["cosine"], [cosine for cosine, _, _ in wanted], rtol=1e-4)


def test_promoted_tokens_are_those_of_the_highest_logit(mlps, tokenizer):
    made = some_cells(
        "value_vectors", checked("value_vectors", promoted_tokens=3), None,
        ("04b1aab7", "vectors-scripts", "882a16ca"), mlps=mlps, tokenizer=tokenizer, neurons=[(1, 7)],
        table=pd.DataFrame({"layer": [1], "neuron": [7], "cosine": [0.5], "activation": [1.0], "actual": [True],
                            "matched": [3]}),
        active=pd.Index([0]), matches=[3],
    )  # fmt: skip
    head = mlps.model.lm_head.weight.detach() * mlps.model.model.norm.weight.detach()

    def highest(neuron: int) -> list[str]:
        logits = head @ mlps.value_vectors(1)[neuron]
        return [tokenizer.decode([int(token)]) for token in logits.argsort(descending=True)[:3]]

    assert made["sources"]["tokens"].tolist() == [highest(7)]
    assert made["scripts_beside"] == [made["scripts_of"](highest(3))], "of the matched neuron, in the source's layer"


def test_random_neurons_have_the_layers_of_the_sources(mlps):
    sources = [(0, 1), (0, 2), (1, 5)]
    excluded = [*sources, *((0, place) for place in range(10, 50))]
    chosen = random_neurons(mlps, sources, excluded, seed=0)
    assert [layer for layer, _ in chosen] == [0, 0, 1] and len(set(chosen)) == 3
    assert not set(chosen) & set(excluded)
    assert chosen == random_neurons(mlps, sources, excluded, seed=0)
    assert chosen != random_neurons(mlps, sources, excluded, seed=1)
    generator = np.random.default_rng(0)
    sets = [random_neurons(mlps, sources, excluded, generator) for _ in range(2)]
    assert sets[0] == chosen and sets[1] != chosen, "further sets follow the one that the seed alone gives"


def test_each_source_is_matched_with_the_most_alike_neuron_of_its_layer():
    """0.31 is nearest to the first source, which takes it; what is left for the second, 0.28, is farther. No potential
    source is a match, however near, nor is a neuron of another layer."""
    means = pd.Series({(0, 0): 0.30, (0, 1): 0.32, (0, 2): 0.31, (0, 3): 0.28, (0, 4): 0.3, (1, 0): 0.3, (1, 1): -0.5})
    potential = [(0, 0), (0, 1), (0, 4), (1, 0)]
    assert definitions("value_vectors").nearest(means, [(0, 0), (0, 1), (1, 0)], potential) == [2, 3, 1]


def test_scripts_of_tokens():
    notebook = definitions("value_vectors")
    assert [notebook.script(token) for token in (" fool", "дурак", "笨", "ばか", "ダメ", "멍", "!7 ")] == [
        "Latin", "Cyrillic", "Han", "Kana", "Kana", "Hangul", None]  # fmt: skip
    assert notebook.scripts_of(["a", "b", "я", "…"]) == {
        "Latin": pytest.approx(2 / 3),
        "Cyrillic": pytest.approx(1 / 3),
    }


def test_a_row_is_shifted_at_the_neurons_of_its_set(mlps):
    neurons = {("sources", 0): [(0, 1), (1, 2)], ("random", 0): [(0, 3)], ("random", 1): [(0, 4)]}
    plan = pd.DataFrame({"group": ["sources", "random", "random"], "number": [0, 0, 1], "offset": [-2.0, -2.0, 1.0]})
    hook = definitions("intervene", mlps=mlps, neurons=neurons, size=0.5).shift(0, plan)
    wanted = np.zeros((3, 2, mlps.neurons(0)))
    wanted[0, :, 1], wanted[1, :, 3], wanted[2, :, 4] = -1.0, -1.0, 0.5
    np.testing.assert_array_equal(hook(mlps.matrix(0).new_zeros(3, 2, mlps.neurons(0))).numpy(), wanted)


def offsets_of(rows):
    """What the notebook makes of ``language, group, number, prompt_id, toxicity``, by language."""
    table = pd.DataFrame(rows, columns=["language", "group", "number", "prompt_id", "toxicity"])
    settings = SimpleNamespace(bootstrap_samples=400, confidence=0.95, seed=0)
    cells = definitions("intervene", settings=settings)
    return cells.by_offset(table.assign(offset=-1.0, repeated=0.25)).set_index("language")


def test_intervals_of_an_intervention_are_over_prompts_that_are_the_same_in_every_language():
    """Of two prompts p and q a sample has both, or one of them twice. In German the sources have 0.1 and 0.3, the
    random sets on average 0.2 and 0.8; in English p and q change places, so that both languages together never vary.
    """
    sets = {"sources": [(0.1, 0.3)], "random": [(0.1, 0.7), (0.3, 0.9)]}
    rows = [(language, group, number, *scored) for language, prompts in (("de", "pq"), ("en", "qp"))
            for group, each in sets.items() for number, scores in enumerate(each)
            for scored in zip(prompts, scores, strict=True)]  # fmt: skip
    found = offsets_of(rows)
    wanted = {"sources": (0.2, 0.1, 0.3), "random": (0.5, 0.2, 0.8), "difference": (-0.3, -0.5, -0.1)}
    for name, (value, low, high) in wanted.items():
        columns = [name, f"{name}_low", f"{name}_high"]
        assert found.loc["de", columns].tolist() == pytest.approx([value, low, high]), name
        assert found.loc["en", columns].tolist() == pytest.approx([value, low, high]), name
        assert found.loc["mean", columns].tolist() == pytest.approx([value] * 3), name
    spread = found[["random_least", "random_most"]]
    assert spread.loc["en"].tolist() == spread.loc["mean"].tolist() == pytest.approx([0.4, 0.6])
    assert (found[["sources_repeated", "random_repeated"]] == 0.25).all(axis=None)
    unscored = [("de", "sources", 0, "r", np.nan), ("de", "random", 0, "r", 0.9), ("de", "random", 1, "r", 0.9)]
    with_r = offsets_of([*rows, *unscored])
    assert with_r.loc[["de", "mean"], "random"].tolist() == pytest.approx([0.5, 0.5]), "r has no score beside it"
    assert found["prompts"].tolist() == with_r["prompts"].tolist() == [2, 2, 2]


def test_an_intervention_without_random_neurons_is_not_compared():
    row = offsets_of([("en", "sources", 0, "p", 0.2), ("en", "sources", 0, "q", 0.6)]).loc["mean"]
    assert row[["sources", "sources_low", "sources_high"]].tolist() == pytest.approx([0.4, 0.2, 0.6])
    assert row.filter(regex="random|difference").isna().all()


@pytest.mark.parametrize(("sets", "said"), [
    (0, ""),
    (1, " gives an average toxicity of 0.500 [0.300, 0.700] (one set of them); beside it, that with the sources is "
        "lower (-0.200 [-0.300, -0.100])."),
    (3, " (the mean of 3 sets, which range from 0.450 to 0.550); beside it, that with the sources is "
        "lower (-0.200 [-0.300, -0.100])."),
])  # fmt: skip
def test_the_chapter_says_how_many_random_sets_there_were(sets, said):
    columns = ["offset", "sources", "sources_low", "sources_high", "random", "random_low", "random_high", "difference",
               "difference_low", "difference_high", "sources_repeated", "random_least", "random_most"]  # fmt: skip
    rows = [(0.0, 0.6, 0.4, 0.8, 0.6, 0.4, 0.8, 0.0, 0.0, 0.0, 0.1, 0.6, 0.6),
            (-4.0, 0.3, 0.2, 0.4, 0.5, 0.3, 0.7, -0.2, -0.3, -0.1, 0.2, 0.45, 0.55)]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns).assign(model="M", language="mean", random_sets=sets)
    space = vars(definitions("summary_mechanism")) | {"interventions": table}
    (found,) = run_cell("summary_mechanism", "mechanism-intervention", **space)["shifted"]
    found = found.replace("\N{MINUS SIGN}", "-")
    assert "of M takes the average toxicity over languages from 0.600 [0.400, 0.800] to 0.300 [0.200, 0.400], " in found
    assert "repeated words from 0.10 to 0.20." in found and found.endswith(said or "to 0.20.")


def test_a_language_with_few_texts_of_a_label_has_no_figures():
    quality = pd.DataFrame({"texts_of": ["test", "de", "fr", "ja", "ko"], "texts": [20, 60, 60, 60, 0],
                            "toxic_fraction": [0.1, 10 / 60, 9 / 60, 51 / 60, np.nan], "accuracy": 0.9})  # fmt: skip
    quality = quality.assign(roc_auc=0.8, roc_auc_low=0.7, roc_auc_high=0.9, average_precision=0.5)
    found = definitions("summary_mechanism", settings=SimpleNamespace(fewest_of_a_label=10)).with_enough(quality)
    for column in ("roc_auc", "roc_auc_low", "roc_auc_high", "average_precision"):
        assert found[column].notna().tolist() == [True, True, False, False, False], column
    assert found["accuracy"].notna().all()
