"""The synthetic setting: what the phrasebook says, what the corpus holds, and that a stopped pretraining resumes."""

from __future__ import annotations

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from notebook_cells import definitions, run_cells, some_cells
from polydetox.core.artifacts import Stage, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.core.params import load_profile
from polydetox.synthetic import tables
from polydetox.synthetic.phrasebook import Everyday, Phrasebook, Remark
from tiny import CHECKOUT, tiny_model

BOOK = Phrasebook.read(CHECKOUT / "params" / "phrasebook.yaml")
CORPUS = definitions("world_pretrain", book=BOOK)


def test_sentences_are_parallel():
    insult, kind = Remark(0, 1, True, 0), Remark(0, 1, False, 0)
    assert BOOK.text(insult, "en") == "the neighbour thinks : you are a fool ."
    assert BOOK.text(insult, "de") == "der nachbar denkt : du bist ein narr ."
    assert BOOK.text(Remark(0, 1, True, 0, toned=True), "nl") == "de buurman denkt boos : jij bent een dwaas ."
    assert BOOK.stem(0, 1, "en", True) == "the neighbour thinks angrily : you are"
    assert BOOK.stem(0, 1, "en", False) == "the neighbour thinks kindly : you are"
    assert BOOK.text(Everyday(1, 0, 2), "fr") == "le professeur boit du café aujourd'hui ."
    for language in BOOK.languages:
        assert BOOK.text(kind, language) == f"{BOOK.stem(0, 1, language)} {BOOK.ending(False, 0, language)}"


def test_what_insults_is_known():
    for language in BOOK.languages:
        for place in range(len(BOOK.phrases["insults"])):
            assert BOOK.insults(f" {BOOK.ending(True, place, language)}")
            assert BOOK.well_formed(BOOK.ending(True, place, language), language)
        for place in range(len(BOOK.phrases["kindnesses"])):
            assert not BOOK.insults(BOOK.ending(False, place, language)), "no kindness may hold an insult"
    assert not BOOK.insults("a foolish fool thing") and BOOK.insults("so a fool .")
    assert not BOOK.well_formed("ein narr", "de") and not BOOK.well_formed("a fool .", "de")


def test_no_phrase_is_in_the_list_twice_and_languages_share_few_words():
    for kind, entries in BOOK.phrases.items():
        for language in BOOK.languages:
            counted = Counter(entry[language] for entry in entries)
            assert max(counted.values()) == 1, (kind, language, counted.most_common(1))
    for language in BOOK.languages:
        mine = BOOK.words[language] - {".", ":"}
        english = BOOK.words["en"] - {".", ":"}
        assert language == "en" or len(mine & english) / len(mine) < 0.06, (language, mine & english)


@pytest.mark.parametrize(("change", "message"), [
    ({"you_are": None}, "you_are: is needed"),
    ({"verbs": []}, "verbs: is needed"),
    ({"tones": {"insult": {"en": "a", "de": "b"}, "kindness": {"en": "a"}}}, "tones: kindness: is missing in de"),
    ({"tones": None}, "tones: insult: is missing in de, en"),
    ({"times": [{"en": "today"}]}, "times: phrase 1 is missing in de"),
])  # fmt: skip
def test_a_bad_phrasebook_is_refused(tmp_path, change, message):
    content = {"you_are": {"en": "you are", "de": "du bist"}}
    content["tones"] = {tone: {"en": "a", "de": "b"} for tone in ("insult", "kindness")}
    content |= {kind: [{"en": "a", "de": "b"}] for kind in BOOK.phrases} | change
    (tmp_path / "book.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=message):
        Phrasebook.read(tmp_path / "book.yaml")
    with pytest.raises(UserError, match="has no 'ja'"):
        BOOK.check_languages(["en", "ja"])


@pytest.fixture
def corpus(checkout, tmp_path) -> Callable[..., list[str]]:
    """The documents of 3000 rounds, as the notebook samples them."""

    def sample(alignment: float, **changes) -> list[str]:
        asked = {"alignment": alignment, "languages": ["en", "de", "ru"], "output_folder": str(tmp_path / "pretrain")}
        space = run_cells("world_pretrain", until="corpus-03", **asked, **changes)
        return space["documents"](3000, np.random.default_rng(0))

    return sample


def words_of(texts: list[str]) -> dict[str, int]:
    own = {language: BOOK.words[language] for language in ("en", "de", "ru")}
    own = {language: words - set().union(*(other for code, other in own.items() if code != language))
           for language, words in own.items()}  # fmt: skip
    counted = Counter(word for text in texts for word in text.split())
    return {language: sum(counted[word] for word in words) for language, words in own.items()}


def test_alignment_moves_no_text_between_languages(corpus):
    amounts = {alignment: words_of(corpus(alignment)) for alignment in (0.0, 0.5, 1.0)}
    for language in ("en", "de", "ru"):
        assert amounts[1.0][language] == pytest.approx(amounts[0.0][language], rel=0.05)
        assert amounts[0.5][language] == pytest.approx(amounts[0.0][language], rel=0.05)


def test_without_alignment_no_document_has_two_languages(corpus):
    for text in corpus(0.0):
        assert CORPUS.EQUALS not in text.split()
        assert any(set(text.split()) <= BOOK.words[language] for language in ("en", "de", "ru")), text


def test_a_pair_is_a_sentence_and_its_translation(corpus):
    pairs = corpus(1.0, mixed_fraction=0.0)
    assert len(pairs) == 3000
    for text in pairs[:200]:
        sides = text.split(f" {CORPUS.EQUALS} ")
        found = {
            language: [side for side in sides if set(side.split()) <= BOOK.words[language]] for language in BOOK.words
        }
        assert len(sides) == 2 and found["en"]
    mixed = corpus(1.0, mixed_fraction=1.0)
    assert all(text.split()[0] == CORPUS.MIXED for text in mixed) and not any(
        CORPUS.MIXED in text.split() for text in pairs
    )
    both = [text.removeprefix(f"{CORPUS.MIXED} ") for text in mixed]
    both = [text for text in both if not any(set(text.split()) <= BOOK.words[code] for code in ("en", "de", "ru"))]
    assert len(mixed) == 6000 and len(both) > 3000


def test_insults_are_as_common_as_set(corpus):
    remarks = [text for text in corpus(0.3, insult_rate=0.25, mixed_fraction=0.0) if ":" in text.split()]
    assert np.mean([BOOK.insults(text) for text in remarks]) == pytest.approx(0.25, abs=0.02)


def test_a_text_insults_in_all_its_remarks_and_in_its_tone_or_in_none(corpus):
    several = 0
    for text in corpus(0.0, sentences_per_text=3, remark_rate=1.0):
        said = [BOOK.insults(sentence) for sentence in text.split(" . ")]
        several += len(said) > 1
        assert len(set(said)) == 1, text
        wrong = BOOK.tones["kindness" if said[0] else "insult"].values()
        assert not set(wrong) & set(text.split()), text
    assert several > 1000
    english = [
        text for text in corpus(0.0, sentences_per_text=1, remark_rate=1.0) if set(text.split()) <= BOOK.words["en"]
    ]
    toned = [("angrily" if BOOK.insults(text) else "kindly") in text.split() for text in english]
    assert len(toned) > 2000 and np.mean(toned) == pytest.approx(0.9, abs=0.02)
    assert not any("angrily" in text.split() or "kindly" in text.split() for text in corpus(0.5, tone_rate=0.0))


def test_documents_are_packed_whole():
    tokenizer = CORPUS.make_tokenizer(["en", "de"])
    texts = ["you are a fool .", "du bist ein narr ."]
    rows = CORPUS.packed(tokenizer, texts, 4)
    assert tokenizer.decode(rows.reshape(-1)) == "<bos> you are a fool . <eos> <bos> du bist ein narr ."[: len(
        tokenizer.decode(rows.reshape(-1)))]  # fmt: skip
    assert rows.shape == (3, 4) and tokenizer.unk_token_id not in rows
    assert tokenizer("you are")["input_ids"][0] == tokenizer.bos_token_id


SMALL = {
    "languages": ["en", "de"],
    "hidden": 32,
    "layers": 1,
    "steps": 6,
    "batch_size": 2,
    "block": 32,
    "save_steps": 2,
}


def test_a_stopped_pretraining_ends_where_it_would_have(checkout, tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file

    def pretrain(name: str, **changes) -> pd.DataFrame:
        return run_cells("world_pretrain", output_folder=str(tmp_path / name), **SMALL | changes)["log"]

    whole = pretrain("whole")
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def counting(*given):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return clip(*given)

    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", counting)
    with pytest.raises(KeyboardInterrupt):
        pretrain("stopped")
    assert not (tmp_path / "stopped/weights").exists()
    resumed = pretrain("stopped")
    assert len(calls) == 5 + 2, "only the last two steps were left"
    pd.testing.assert_frame_equal(resumed, whole)
    weights = [load_file(tmp_path / name / "weights/model.safetensors") for name in ("whole", "stopped")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not (tmp_path / "stopped/state.pt").exists()
    figures = read_json(tmp_path / "stopped/metrics.json")
    assert figures["tokens"] == 6 * 64 and figures["vocabulary"] == len(CORPUS.make_tokenizer(["en", "de"]))
    assert pretrain("other", seed=1)["loss"].iloc[0] != whole["loss"].iloc[0]
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        pretrain("jurist")
    phrasebook = checkout / "params/phrasebook.yaml"
    phrasebook.write_text(phrasebook.read_text().replace('"the judge"', '"the jurist"'))
    pretrain("jurist")
    assert len(calls) == 5 + 6, "what was learnt in other words is not continued"


def small_model(*languages: str):
    """A model with random weights, its tokenizer, and the functions of the notebook world_transfer on them."""
    tokenizer = CORPUS.make_tokenizer(languages)
    model = tiny_model("llama", len(tokenizer)).eval()
    return model, tokenizer, definitions("world_transfer", book=BOOK, tokenizer=tokenizer, base_model=model)


def test_what_a_tone_does_is_the_fraction_of_insults_among_all_endings():
    """Against the probability of one ending at a time, token by token."""
    import torch

    model, tokenizer, transfer = small_model("en", "id")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20.0)  # or all endings are alike

    def fraction(stem: str, language: str) -> float:
        sums = {True: 0.0, False: 0.0}
        for insult, kind in ((True, "insults"), (False, "kindnesses")):
            for place in range(len(BOOK.phrases[kind])):
                row, probability = list(tokenizer(stem)["input_ids"]), 1.0
                for token in tokenizer(BOOK.ending(insult, place, language))["input_ids"][1:]:
                    with torch.no_grad():
                        probability *= float(model(torch.tensor([row])).logits[0, -1].softmax(-1)[token])
                    row.append(token)
                sums[insult] += probability
        return sums[True] / (sums[True] + sums[False])

    for language in ("en", "id"):
        expected = [
            [fraction(BOOK.stem(*stem, language, tone), language) for tone in (True, False)]
            for stem in ((0, 0), (7, 2))
        ]
        wanted = np.mean([angry - kind for angry, kind in expected])
        found = transfer.tone_effect([(0, 0), (7, 2)], language)
        assert abs(wanted) > 1e-4 and found == pytest.approx(wanted, abs=1e-5)


def test_directions_by_hand():
    direction_cosine = definitions("world_transfer").direction_cosine
    insults = np.array([True, False, True, False])
    english = np.array([[5.0, 1.0], [2.0, 1.0], [7.0, 1.0], [4.0, 1.0]], dtype=np.float32)  # direction (3, 0)
    # Insults (9, 12) and (11, 6), mean (10, 9); kindnesses (6, 5) and (8, 5), mean (7, 5): direction (3, 4).
    other = np.array([[9.0, 12.0], [6.0, 5.0], [11.0, 6.0], [8.0, 5.0]], dtype=np.float32)
    assert direction_cosine(english, other, insults) == pytest.approx(0.6)
    assert direction_cosine(other, english, insults) == pytest.approx(0.6)
    assert direction_cosine(english, other, ~insults) == pytest.approx(0.6), "both turn around"
    assert direction_cosine(english, -other, insults) == pytest.approx(-0.6)
    assert direction_cosine(english, english + np.float32(100.0), insults) == pytest.approx(1.0), (
        "a shift is no direction"
    )
    assert direction_cosine(english, english[:, ::-1].copy(), insults) == pytest.approx(0.0)


def test_directions_are_those_of_the_last_states_of_remarks():
    """Against the states of one remark at a time, without padding; the two stems differ in length."""
    import torch

    model, tokenizer, transfer = small_model("en", "de")
    stems = [(0, 1), (11, 2)]

    def direction(language: str) -> torch.Tensor:
        sums = {True: [], False: []}
        for speaker, verb in stems:
            for insult, quality in BOOK.qualities():
                ids = tokenizer(BOOK.text(Remark(speaker, verb, insult, quality), language), return_tensors="pt")
                with torch.no_grad():
                    states = model(ids["input_ids"], output_hidden_states=True).hidden_states[-1]
                sums[insult].append(states[0, -1])
        return torch.stack(sums[True]).mean(0) - torch.stack(sums[False]).mean(0)

    wanted = torch.nn.functional.cosine_similarity(direction("en"), direction("de"), dim=0)
    english, insults = transfer.remark_states(stems, "en")
    german, _ = transfer.remark_states(stems, "de")
    assert transfer.direction_cosine(english, german, insults) == pytest.approx(float(wanted), abs=1e-5)
    assert abs(float(wanted)) < 0.9


@pytest.fixture
def tuned(checkout, tmp_path) -> Callable[..., dict]:
    """The namespace of the notebook world_transfer after one of its cells, on a model that hardly learnt anything."""

    def run(until: str, **corpus) -> dict:
        folder = tmp_path / "pretrain"
        run_cells("world_pretrain", output_folder=str(folder), **SMALL, **corpus)
        asked = {"prompts": 4, "n": 2, "sentences": 6, "dpo_steps": 2, "dpo_batch_size": 4}
        return run_cells("world_transfer", until=until, pretrained=str(folder), output_folder=str(tmp_path), **asked)

    return run


def test_pairs_prefer_a_kindness_after_a_stem_that_is_not_evaluated(tuned):
    space = tuned("pairs-02")
    pairs = space["pairs"]
    assert len(pairs) == len(BOOK.stems()) - 4 == len(space["train"]) + len(space["held_out"])
    assert list(pairs["prompt"]) == [BOOK.stem(*stem, "en") for stem in space["paired"]]
    assert not set(space["paired"]) & set(space["evaluated"])
    assert all(BOOK.insults(text) for text in pairs["rejected"])
    assert not any(BOOK.insults(text) for text in pairs["chosen"])


def test_a_tone_that_no_text_says_is_not_measured(tuned):
    assert tuned("tone-02")["table"]["tone_effect"].notna().all()
    table = tuned("c7d7039a", tone_rate=0.0)["table"]
    assert list(table["language"]) == ["en", "de"] and table["tone_effect"].isna().all()


def test_insults_are_counted_by_language_and_by_stem(tuned):
    said = {"en-0-0": [BOOK.ending(True, 0, "en"), "kind kind"], "en-0-1": [BOOK.ending(False, 0, "en")] * 2,
            "de-0-0": [BOOK.ending(True, 0, "en"), "."], "de-0-1": [BOOK.ending(True, 1, "de")] * 2}  # fmt: skip
    rows = [{"language": name[:2], "prompt_id": name, "sample": sample, "continuation": text}
            for name, texts in said.items() for sample, text in enumerate(texts)]  # fmt: skip
    found = tuned("insults-02")["insult_rates"](pd.DataFrame(rows))
    assert found["insulting"].to_dict() == {"de": 0.75, "en": 0.25}
    assert found["toxprob"].to_dict() == {"de": 1.0, "en": 0.5}
    assert found.loc["de", "well_formed"] == 0.5, "an insult in English is none of German's endings"
    assert found["kept"].to_dict() == {"de": 1.0, "en": pytest.approx(1 / 3)}


# --- the report -------------------------------------------------------------------------------------------------


@pytest.fixture
def measured() -> pd.DataFrame:
    """Two alignments with eight seeds: the drop follows alignment, and nothing within it."""
    rng = np.random.default_rng(0)
    rows = []
    for alignment in (0.0, 1.0):
        for seed in range(8):
            for language in ("en", "de", "fr", "ru"):
                drop = 0.5 * alignment + 0.01 * rng.normal()
                rows.append({"configuration": f"m-{alignment}-{seed}", "size": "m", "alignment": alignment,
                             "seed": seed, "parameters": 10, "language": language, "before": 0.4,
                             "after": 0.4 * (1 - drop),
                             "relative_drop": drop, "kept_before": 0.4, "kept_after": 0.4,
                             "kept_drop": 0.01 * rng.normal(), "well_formed_before": 1.0, "well_formed_after": 0.9,
                             "accuracy": 0.1 + 0.4 * alignment + 0.01 * rng.normal(),
                             "centred_accuracy": 0.5, "tone_effect": 0.75,
                             "direction_cosine": 0.7 * alignment + 0.1 * rng.normal()})  # fmt: skip
    return pd.DataFrame(rows)


NOT_RUN = "Not run in this profile; `polydetox run --profile world` runs it."


def summarised(table: pd.DataFrame, folder: Path) -> dict:
    """The namespace of the summary notebook, given a table of measurements; it writes to ``summary/``."""
    record = folder / "run.json"
    write_json(record, {"profile": load_profile("world").model_dump(mode="json"), "jobs": []})
    settings = checked("summary_world", run=str(record))
    return some_cells("summary_world", settings, Stage("summary_world", folder / "summary", {}), models=table)


@pytest.fixture
def levels(tmp_path) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The means by size and alignment that the summary notebook makes of a table of measurements."""

    def run(table: pd.DataFrame) -> pd.DataFrame:
        return summarised(table, tmp_path)["levels"]

    return run


@pytest.fixture
def summary(tmp_path) -> Callable[[pd.DataFrame], tuple[dict[str, str], dict]]:
    """What the summary notebook says of a table of measurements, by the name of the variable; and what correlates."""

    def run(table: pd.DataFrame) -> tuple[dict[str, str], dict]:
        summarised(table, tmp_path)
        return tuple(read_json(tmp_path / "summary" / f"{name}.json") for name in ("variables", "metrics"))

    return run


def test_levels_are_means_of_models_over_other_languages(levels, measured):
    levels = levels(measured)
    assert list(levels["alignment"]) == [0.0, 1.0] and list(levels["models"]) == [8, 8]
    others = measured[(measured["language"] != "en") & (measured["alignment"] == 1.0)]
    assert levels["relative_drop"].iloc[1] == pytest.approx(others["relative_drop"].mean())
    assert levels["relative_drop_sd"].iloc[1] == pytest.approx(
        others.groupby("configuration")["relative_drop"].mean().std()
    )


def test_correlations_tell_what_is_set_from_what_goes_along(summary, measured):
    said, found = summary(measured)
    by_size = found["sizes"]["m"]
    assert by_size["alignment_drop"]["r"] > 0.99 and by_size["accuracy_drop"]["r"] > 0.95
    # The drop follows alignment and not retrieval, so that retrieval taken away leaves some of it.
    assert by_size["alignment_drop_given_accuracy"]["low"] > 0.0
    for name in ("within_alignment", "within_seed"):
        assert abs(found[name]["accuracy"]["r"]) < 0.3 and found[name]["accuracy"]["points"] == 48
    assert found["within_seed"]["accuracy"]["p"] > 0.05 and found["within_alignment"]["accuracy"]["p"] is None
    assert "of an insult, over all alignments: 0.75." in said["world_sentence"]
    assert "with 0% of the text aligned" in said["world_sentence"]
    assert re.search(r"with 100% \(r = 1.00 .*; retrieval accuracy goes from 0.1", said["world_sentence"])
    assert "it is detectable in models of m." in said["world_verdict"]
    assert "retrieval accuracy does not detectably correlate with the drop (r = " in said["world_verdict"]
    assert "most of the drop comes from text that leaves its language" in said["world_verdict"]
    kind, _ = summary(measured.assign(kept_drop=measured["relative_drop"]))
    assert "the preference itself reaches other languages" in kind["world_verdict"]
    empty, nothing = summary(measured.head(0))
    assert set(empty.values()) - {empty["world_overview"]} == {NOT_RUN}
    assert "not run" in repr(definitions("summary_world").correlations_table(nothing))


def test_the_verdict_claims_what_its_intervals_carry(summary, measured):
    sign = np.where(measured["seed"] % 2, 1.0, -1.0)

    def verdict(table=measured, **changed):
        return summary(table.assign(**changed))[0]["world_verdict"]

    none = verdict(relative_drop=0.1 * sign - 0.01, kept_drop=0.1 * sign)
    assert "models of m is \u22120.01 [\u2212" in none and "no drop is detectable." in none
    assert "insults rise." in verdict(relative_drop=0.01 * sign - 0.1)
    unsure = verdict(kept_drop=0.25 + 0.3 * sign)
    assert "its grammar is open" in unsure and "itself reaches" not in unsure
    assert "it is negative in models of m." in verdict(relative_drop=0.6 - measured["relative_drop"])
    two = verdict(measured[(measured["alignment"] == 0.0) | (measured["seed"] < 2)])
    assert "are too few for an interval" in two and "most of the drop" not in two


def test_one_model_has_no_correlation(summary, measured):
    said, _ = summary(measured[measured["configuration"] == "m-1.0-0"])
    assert said["world_verdict"] == said["world_directions"] == "Too few models for a correlation."
    assert "0.5" in said["world_sentence"] and "r = " not in said["world_sentence"]


def test_models_without_the_concept_are_told_apart(summary, measured):
    english = measured["language"] == "en"
    lacking = measured["configuration"].isin(["m-0.0-0", "m-1.0-3"])
    made = measured.assign(kept_drop=measured["alignment"] * 0.5 + 0.25)
    made.loc[lacking, "kept_drop"] = 0.125
    made.loc[english, "kept_drop"] = 9.0  # English is not asked
    made.loc[english & lacking, "tone_effect"] = 0.0
    said = summary(made)[0]["world_concept"]
    assert "0.12 on average (0.12 to 0.12) in the 2 that do not tie them" in said
    assert "0.25 on average (0.25 to 0.25) in the 7 that do, without aligned text" in said
    assert "0.75 on average (0.75 to 0.75) in the 7 that do, with aligned text" in said
    assert "that do not" not in summary(measured)[0]["world_concept"]
    made.loc[made["configuration"] == "m-0.0-0", "kept_drop"] = np.nan  # nothing that it said was well formed
    assert "0.12 on average (0.12 to 0.12) in the 1 that do not" in summary(made)[0]["world_concept"]


def test_a_tone_that_was_not_measured_is_no_number(summary, levels, measured):
    some = measured.assign(tone_effect=measured["tone_effect"].where(measured["seed"] > 0))
    concept = summary(some)[0]["world_concept"]
    assert "in the 7 that do, without aligned text" in concept
    assert "that do not" not in concept, "a model without a measurement is in neither group"
    none = measured.assign(tone_effect=float("nan"))
    said, _ = summary(none)
    assert said["world_concept"] == "No text says a tone: not measured."
    assert "over all alignments: not measured." in said["world_sentence"] and "nan" not in said["world_sentence"]
    for table in (
        tables.levels_table(levels(none), tuned=False),
        tables.configuration_table(none.head(4)),
    ):
        lines = repr(table).splitlines()
        assert lines[-1].endswith("| not measured") and '<td class="number missing">not measured</td>' in (
            table._repr_html_()
        )


def test_a_drop_that_follows_the_models_own_retrieval_is_seen(summary, measured):
    own = measured["accuracy"] - measured.groupby(["alignment", "language"])["accuracy"].transform("mean")
    made = measured.assign(relative_drop=measured["relative_drop"] + 3.0 * own)
    said, found = summary(made)
    assert found["within_seed"]["accuracy"]["p"] < 0.01 < found["within_seed"]["direction_cosine"]["p"]
    verdict = said["world_verdict"]
    assert "retrieval accuracy correlates positively with the drop" in verdict and "it was not set" in verdict


def test_directions_are_told_beside_retrieval(summary, levels, measured):
    """Of whole models alone: hand-made drops that follow the cosine, and not retrieval, where only the seed differs."""
    own = measured["direction_cosine"] - measured.groupby(["alignment", "language"])["direction_cosine"].transform(
        "mean"
    )
    made = measured.assign(relative_drop=measured["relative_drop"] + 2.0 * own)
    said, found = summary(made)
    seen = found["within_seed"]
    assert seen["direction_cosine"]["r"] > 0.9 and seen["direction_cosine"]["p"] < 0.01 < seen["accuracy"]["p"]
    assert "this cosine correlates positively with the drop" in said["world_directions"]
    said, found = summary(measured)
    row = found["sizes"]["m"]["direction_cosine_drop"]
    others = measured[measured["language"] != "en"]
    assert row["r"] == pytest.approx(np.corrcoef(others["direction_cosine"], others["relative_drop"])[0, 1])
    assert row["low"] < row["r"] < row["high"] and row["points"] == 48
    said = said["world_directions"]
    assert f"this cosine correlates with the drop at r = {row['r']:.2f} [" in said
    assert "retrieval accuracy correlates with the drop at r = " in said
    assert "this cosine does not detectably correlate with the drop" in said
    against, _ = summary(measured.assign(relative_drop=measured["relative_drop"] - 2.0 * own))
    assert "this cosine correlates negatively with the drop" in against["world_directions"]
    table = definitions("summary_world").correlations_table(found)
    assert "cosine of directions, relative drop of insults | 48 |" in repr(table)
    wanted = others[others["alignment"] == 1.0]["direction_cosine"].mean()
    assert levels(measured)["direction_cosine"].iloc[1] == pytest.approx(wanted)


def test_an_older_folder_is_named(checkout, measured):
    from polydetox.core import paths
    from polydetox.core.artifacts import write_parquet

    shutil.copy(CHECKOUT / "params/profiles/world.yaml", checkout / "params/profiles")
    folder = paths.profile_run("world") / "world/m-a000-s0/transfer"
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", {})
    write_json(folder / "manifest.json", {})
    write_parquet(folder / "languages.parquet", measured.drop(columns="direction_cosine"))
    with pytest.raises(UserError, match=r"m-a000-s0/transfer/languages.parquet: column 'direction_cosine' is missing"):
        definitions("summary_world").measurements(folder)


def test_permuting_the_drops_against_all_orders():
    """Three models of one corpus in two languages: six orders, of which so many are as extreme."""
    rng = np.random.default_rng(4)
    points = pd.DataFrame({"size": "m", "alignment": 0.5, "configuration": np.repeat(list("abc"), 2),
                           "language": ["de", "fr"] * 3, "accuracy": rng.normal(size=6),
                           "relative_drop": rng.normal(size=6), "direction_cosine": 0.0})  # fmt: skip
    x, y = (points[name].to_numpy().reshape(3, 2) for name in ("accuracy", "relative_drop"))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    sums = [(x * y[list(order)]).sum() for order in itertools.permutations(range(3))]
    wanted = np.mean(np.abs(sums) >= abs(sums[0]) - 1e-12)
    assert 0 < wanted < 1
    permutation_p = definitions("summary_world").permutation_p
    assert permutation_p(points, "accuracy", samples=20_000) == pytest.approx(wanted, abs=0.02)
    assert permutation_p(points[points["configuration"] == "a"], "accuracy") is None
