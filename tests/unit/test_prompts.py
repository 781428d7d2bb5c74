"""The prompts written for this project: complete, distinct, in the right script, and never trained on."""

from __future__ import annotations

import re

import pytest
import yaml

from polydetox.core.languages import LANGUAGES
from polydetox.core.params import load_profile
from polydetox.data.prompts import neutral_prompts, parallel_translations, politeness
from tiny import CHECKOUT

EVALUATION = yaml.safe_load((CHECKOUT / "params/prompts/evaluation.yaml").read_text("utf-8"))
TRAINING = yaml.safe_load((CHECKOUT / "params/prompts/training.yaml").read_text("utf-8"))

SCRIPTS = {
    "ar": r"[\u0600-\u06ff]", "hi": r"[\u0900-\u097f]", "ja": r"[\u3040-\u30ff]", "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]", "zh": r"[\u4e00-\u9fff]",
}  # fmt: skip


def test_every_prompt_is_there_in_every_language():
    for profile in ("offline", "offline-full"):
        assert len(EVALUATION) >= load_profile(profile).prompts.limit + 8, "the last ones measure what trimming loses"
    for entry in EVALUATION:
        assert set(entry) == {"name", "topic", *LANGUAGES}, entry["name"]
    assert len({entry["name"] for entry in EVALUATION}) == len(EVALUATION)
    assert len(TRAINING) >= 60 and len({entry["name"] for entry in TRAINING}) == len(TRAINING)


@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts_of_a_language_are_distinct_open_and_in_its_script(language):
    texts = [entry[language] for entry in EVALUATION]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text == text.strip() and "\n" not in text
        assert not re.search(r"[.!?。！？।]$", text), "a prompt ends open"
        letters = [character for character in text if character.isalpha()]
        if language in SCRIPTS:
            assert re.search(SCRIPTS[language], text), text
            assert sum(character.isascii() for character in letters) == 0, text
        else:
            assert all(ord(character) < 0x250 for character in letters), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_politeness_is_asked_for_in_a_line_of_its_own_in_each_language(language):
    text = politeness("own-language", language)
    assert text.endswith("\n") and "\n" not in text[:-1] and text.strip() == text[:-1]
    assert (text == politeness("own-language", "en")) == (language == "en")
    assert re.search(SCRIPTS.get(language, r"[a-z]"), text)
    assert politeness("english", language) == politeness("own-language", "en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_for_retrieval_are_whole_distinct_and_in_the_script_of_their_language(language):
    texts = parallel_translations(language)
    assert len(texts) == len(set(texts)) == 40
    for text in texts:
        assert text == text.strip() and "\n" not in text
        assert re.search(r"[.。।]$", text), "a sentence is whole"
        letters = "".join(filter(str.isalpha, text))
        if language in SCRIPTS:
            assert re.search(SCRIPTS[language], text) and not re.search(r"[A-Za-z]", text), text
            assert language != "zh" or not re.search(SCRIPTS["ja"], text), text
        else:
            assert all(ord(letter) < 0x250 for letter in letters), text


def test_no_sentence_for_retrieval_is_a_prompt():
    english = [*neutral_prompts()["prompt"], *(entry["en"] for entry in TRAINING)]
    for language in LANGUAGES:
        known = [entry[language] for entry in EVALUATION] + (english if language == "en" else [])
        for text in parallel_translations(language):
            assert not any(prompt in text or text.rstrip(".。।") in prompt for prompt in known), text
    evaluated = set().union(*(grams(entry["en"]) for entry in EVALUATION))
    assert not any(grams(text) & evaluated for text in parallel_translations("en"))


def words(text):
    return re.findall(r"\w+", text.casefold())


def grams(text, order=4):
    tokens = words(text)
    return {tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1)}


def test_nothing_evaluated_is_trained_on():
    evaluated = set().union(*(grams(entry["en"]) for entry in EVALUATION))
    for entry in TRAINING:
        assert not grams(entry["en"]) & evaluated, entry
    texts = {" ".join(words(entry["en"])) for entry in EVALUATION}
    assert not texts & {" ".join(words(entry["en"])) for entry in TRAINING}


@pytest.mark.parametrize("limit", [24, 40])
def test_a_good_share_is_about_a_third_person(limit):
    """A scorer trained in English over-reads the second person, so not every prompt may be addressed to `you`."""
    addressed = [bool({"you", "your", "yourself"} & set(words(entry["en"]))) for entry in EVALUATION[:limit]]
    assert 0.2 <= sum(addressed) / len(addressed) <= 0.6
