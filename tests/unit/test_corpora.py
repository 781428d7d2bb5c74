"""RealToxicityPrompts, PolygloToxicityPrompts, ToxiGen and Wikitext out of local folders, in their published fields."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from polydetox.core.errors import UserError
from polydetox.core.params import Profile
from polydetox.data import corpora
from polydetox.data.prompts import languages_available, load_prompts, prompt_file
from polydetox.scoring.stored import StoredScorer


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")


def test_real_toxicity_prompts(tmp_path):
    rows = [{"filename": "f", "begin": 0, "end": 9, "challenging": False,
             "prompt": {"text": f"prompt {number} ", "toxicity": 0.25 * number}, "continuation": {"text": " goes on"}}
            for number in range(4)] * 10  # fmt: skip
    rows[5] = {"prompt": {"text": "x", "toxicity": None}, "continuation": None}
    rows[6] = {"prompt": {"text": "", "toxicity": 0.1}}
    rows[7] = {"prompt": {"text": "x", "toxicity": 7}}
    lines(tmp_path / "prompts.jsonl", rows)
    table, skipped = corpora.real_toxicity_prompts(tmp_path)
    assert len(table) == 38 and skipped.blank == 1 and skipped.rejected[0].line == 8
    assert table.loc[2, ["prompt_id", "prompt", "toxicity"]].tolist() == ["rtp-000002", "prompt 2 ", 0.5]
    stripped, kept = (load_prompts("real-toxicity-prompts", "en", tmp_path, strip=strip)[0] for strip in (True, False))
    assert (stripped["prompt"][2], kept["prompt"][2]) == ("prompt 2", "prompt 2 ")
    assert table["toxicity"][5] is None and table["prompt_id"].is_unique


def polyglo(language, text, score):
    return {"text": f"{text} and more", "prompt": text, "meta_data": {"lang": language},
            "prompt_perspective": {"attributeScores": {"TOXICITY": {"summaryScore": {"value": score}}}}}  # fmt: skip


def test_polyglo_toxicity_prompts_bring_their_scores(tmp_path):
    rows = [polyglo("de", f"Satz {number}", number / 10) for number in range(10)] + [polyglo("en", "a", 0.5)]
    lines(tmp_path / "ptp/small.jsonl", rows)
    table, skipped = corpora.polyglo_toxicity_prompts(tmp_path, "de")
    assert table["toxicity"].tolist() == [number / 10 for number in range(10)] and not skipped
    with pytest.raises(UserError, match=r"no prompts of PolygloToxicityPrompts in French \(languages: de en\)"):
        corpora.polyglo_toxicity_prompts(tmp_path, "fr")
    # The same files are stored scores of a scorer.
    scorer = StoredScorer(tmp_path / "ptp")
    assert [score.value for _, score in next(iter(scorer.batches(["Satz 3"], "de")))] == [0.3]


def test_published_prompts_are_evaluation_prompts_too(tmp_path):
    real, many = tmp_path / "real", tmp_path / "many"
    lines(real / "prompts.jsonl", [{"prompt": {"text": f"prompt {number} ", "toxicity": 0.5}} for number in range(4)])
    for language in ("de", "en", "sv"):
        lines(
            many / f"ptp-{language}/full.jsonl", [polyglo(language, f"{language} {number}", 0.1) for number in range(3)]
        )
    table, _ = load_prompts("real-toxicity-prompts", "en", real, 3)
    assert table["prompt"].tolist() == table["gloss"].tolist() == ["prompt 0", "prompt 1", "prompt 2"]
    with pytest.raises(UserError, match=r"English alone: no prompts in German \(de\)"):
        load_prompts("real-toxicity-prompts", "de", real)
    table, _ = load_prompts("polyglo-toxicity-prompts", "sv", many)
    assert table["prompt"].tolist() == ["sv 0", "sv 1", "sv 2"] and table["gloss"].isna().all()
    with pytest.raises(UserError, match=r"in French \(languages: de en sv\)"):
        load_prompts("polyglo-toxicity-prompts", "fr", many)
    asked = ["de", "en", "fr"]
    assert languages_available("polyglo-toxicity-prompts", asked, many) == ["de", "en"]
    assert languages_available("real-toxicity-prompts", asked, real) == ["en"]
    assert languages_available("polyglo-toxicity-prompts", asked, tmp_path / "none") == []
    assert prompt_file("polyglo-toxicity-prompts", "de", many) == many
    for source in ("real-toxicity-prompts", "polyglo-toxicity-prompts", "toxigen"):
        with pytest.raises(UserError, match=f"prompts from {source} need their folder"):
            load_prompts(source, "en")
    # A folder that only happens to end like a language does not overrule what its rows say.
    lines(tmp_path / "set-it/all.jsonl", [polyglo("de", "eins", 0.1), polyglo("it", "uno", 0.1)])
    assert load_prompts("polyglo-toxicity-prompts", "de", tmp_path / "set-it")[0]["prompt"].tolist() == ["eins"]
    lines(many / "again/full.jsonl", [polyglo("de", "noch einer", 0.1)])
    with pytest.raises(UserError, match="files of the same name"):
        load_prompts("polyglo-toxicity-prompts", "de", many)


def test_parts_that_repeat_each_others_prompts_give_each_once(tmp_path):
    """The parts full and small of a language stand beside each other, and share prompts."""
    lines(tmp_path / "ptp-de/full.jsonl", [polyglo("de", text, 0.1) for text in ("eins", "zwei", "drei", " ")])
    lines(tmp_path / "ptp-de/small.jsonl", [polyglo("de", text, 0.2) for text in ("zwei ", "vier", "eins", "vier")])
    # What users wrote to an assistant is published beside them, and is not to be continued.
    lines(tmp_path / "wildchat-de/wildchat.jsonl", [polyglo("de", "wie geht es dir", 0.1)])
    table, skipped = load_prompts("polyglo-toxicity-prompts", "de", tmp_path)
    assert table["prompt"].tolist() == ["eins", "zwei", "drei", "vier"] and table["prompt_id"].is_unique
    assert table["prompt_id"].tolist()[-1] == "ptp-small-000001"
    assert (skipped.blank, skipped.repeated, skipped.rejected) == (1, 3, [])
    assert str(skipped) == "1 rows without text skipped, 3 rows that repeat a text skipped"
    assert skipped.record() == {"blank": 1, "repeated": 3, "rejected": 0, "rejected_lines": []}
    lines(tmp_path / "ptp-de/small.jsonl", [polyglo("de", "fünf", 0.2)])
    assert len(load_prompts("polyglo-toxicity-prompts", "de", tmp_path)[0]) == 4, "a changed file is read again"


def test_what_lies_beside_the_prompts_does_not_stop_them(tmp_path):
    """Files of the Hub about the data set, and the empty file of a language; what should hold prompts is refused."""
    folder = tmp_path / "ptp"
    lines(folder / "ptp-de/full.jsonl", [polyglo("de", "eins", 0.25)])
    (folder / "dataset_infos.json").write_text(json.dumps({"ptp-de": {"features": {}}}, indent=2))
    (folder / "ptp-co").mkdir()
    (folder / "ptp-co/x.jsonl").write_text("\n")
    lines(folder / "log.jsonl", [{"step": 1}, {"step": 2}])
    table, skipped = load_prompts("polyglo-toxicity-prompts", "de", folder)
    assert table["prompt"].tolist() == ["eins"] and not skipped
    assert corpora.polyglo_toxicity_prompts(folder, "de")[0]["toxicity"].tolist() == [0.25]
    assert languages_available("polyglo-toxicity-prompts", ["de", "en"], folder) == ["de"]
    lines(folder / "more.jsonl", [{"text": "zwei", "meta_data": {"lang": "de"}}])
    with pytest.raises(UserError, match=r"more\.jsonl:1: field 'prompt' is missing"):
        load_prompts("polyglo-toxicity-prompts", "de", folder)
    lines(folder / "more.jsonl", [{"prompt": 5, "toxicity": 0.5, "lang": "de"}])
    with pytest.raises(UserError, match=r"more\.jsonl:1: field 'prompt' should be a valid string"):
        load_prompts("polyglo-toxicity-prompts", "de", folder)


def test_an_empty_folder_holds_no_language(tmp_path):
    for source in ("real-toxicity-prompts", "polyglo-toxicity-prompts", "toxigen"):
        assert languages_available(source, ["de", "en"], tmp_path) == []
        with pytest.raises(UserError, match=r"no file of .* there"):
            load_prompts(source, "en", tmp_path)


def test_a_damaged_file_is_no_absent_language(tmp_path, monkeypatch):
    """One file of several languages: it is read once for all of them, and named where it cannot be read."""
    rows = [polyglo(language, f"{language} {number}", 0.1) for number in range(20) for language in ("de", "en")]
    rows[2]["prompt"] = 5
    lines(tmp_path / "all.jsonl", rows)
    read = []
    monkeypatch.setattr(Path, "read_bytes", lambda file, real=Path.read_bytes: read.append(file) or real(file))
    asked = ["de", "en", "fr"]
    assert languages_available("polyglo-toxicity-prompts", asked, tmp_path) == ["de", "en"]
    german, english = (load_prompts("polyglo-toxicity-prompts", code, tmp_path)[1] for code in ("de", "en"))
    assert len(read) == 1
    assert [str(line) for line in german.rejected] == ["all.jsonl:3: field 'prompt' should be a valid string"]
    assert not english, "a malformed row counts in its own language"
    (tmp_path / "all.jsonl").write_text("{\n" * 9)
    with pytest.raises(UserError, match=r"all\.jsonl:1: not valid JSON"):
        languages_available("polyglo-toxicity-prompts", asked, tmp_path)
    (tmp_path / "prompts.jsonl").write_text("{\n" * 9)
    assert languages_available("real-toxicity-prompts", ["de"], tmp_path) == []
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: not valid JSON"):
        languages_available("real-toxicity-prompts", asked, tmp_path)


def test_prompts_that_pairs_may_hold_are_refused():
    told = {"title": "t", "description": "d", "models": ["gpt2"], "languages": ["en"],
            "pairs": {"rtp-lx": {"folder": "x"}}, "variants": {"dpo": {"pairs": "rtp-lx"}},
            "prompts": {"source": "real-toxicity-prompts", "folder": "x"}}  # fmt: skip
    real, rtp_lx = told.pop("prompts"), {"source": "rtp-lx", "folder": "x"}
    for prompts, words in ((real, "source: RTP-LX's prompts come from RealToxicityPrompts"),
                           (rtp_lx, "limit: is needed, since pairs from RTP-LX skip")):  # fmt: skip
        with pytest.raises(ValidationError, match=f"error, prompts: {words}"):
            Profile.model_validate({"name": "p", **told, "prompts": prompts})
        with pytest.raises(ValidationError, match=f"error, more_prompts: second: {words}"):
            Profile.model_validate({"name": "p", **told, "more_prompts": {"second": prompts}})


def test_prompts_of_a_data_set_need_its_folder():
    with pytest.raises(ValidationError, match=r"more_prompts.second\n.*for example \$POLYGLO_TOXICITY_PROMPTS"):
        Profile.model_validate({"name": "p", "more_prompts": {"second": {"source": "polyglo-toxicity-prompts"}}})
    with pytest.raises(ValidationError, match=r"prompts\n.*folder: is needed for the source toxigen, .*\$TOXIGEN"):
        Profile.model_validate({"name": "p", "prompts": {"source": "toxigen"}})


def test_toxigen_in_both_releases(tmp_path):
    prompts = ["- p\\n- ", "- q\n-", "r"]
    pd.DataFrame({"prompt": prompts, "generation": ["one", "two", None], "prompt_label": [1, 0, 1]}).to_parquet(
        tmp_path / "train-0.parquet"
    )
    table, skipped = corpora.toxigen(tmp_path)
    assert table.to_dict("list") == {"text": ["one", "two"], "toxic": [True, False], "prompt": ["- p\n-", "- q\n-"]}
    assert skipped.blank == 1
    (tmp_path / "human.csv").write_text("text,toxicity_human\nthree,4.5\nfour,1.0\n")
    (tmp_path / "single.csv").write_text("worker,answer\na,b\n")
    table = corpora.toxigen(tmp_path)[0]
    assert table["toxic"].sum() == 2 and table["prompt"].isna().tolist() == [True, True, False, False]
    (tmp_path / "human.csv").write_text("text,toxicity_human\nthree,9\n")
    with pytest.raises(UserError, match=r"human\.csv:1: field 'toxicity_human' should be less than or equal to 5"):
        corpora.toxigen(tmp_path)
    with pytest.raises(UserError, match="is this ToxiGen"):
        corpora.toxigen(tmp_path / "single.csv")


def identity(text):
    return f"toxigen-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def test_toxigens_prompts_are_those_of_its_toxic_rows(tmp_path):
    """Lists of statements that end in an open hyphen; some versions spell the line breaks."""
    listed = ["- one\\n- two\\n-", "- kind\\n-", "- three\n- four\n-", "- one\n- two\n- ", None, " "]
    rows = pd.DataFrame({"prompt": listed * 10, "generation": "a", "prompt_label": [1, 0, 1, 1, 1, 1] * 10})
    rows.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    table, skipped = load_prompts("toxigen", "en", tmp_path)
    expected = ["- one\n- two\n-", "- three\n- four\n-"]
    assert table.to_dict("list") == {"prompt_id": [identity(text) for text in expected], "prompt": expected,
                                     "gloss": expected}  # fmt: skip
    assert (skipped.blank, skipped.repeated, skipped.rejected) == (20, 0, [])
    assert languages_available("toxigen", ["de", "en"], tmp_path) == ["en"]
    grouped = rows.head(4).assign(prompt=["- a\n-", "- b\n-", "- a\n-", "- c\n-"], prompt_label=1, group=list("xxyy"))
    grouped.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert load_prompts("toxigen", "en", tmp_path)[0]["prompt"].tolist() == ["- a\n-", "- b\n-", "- c\n-"]
    grouped.assign(prompt=["- a\n-", "- b\n-", "- d\n-", "- c\n-"]).to_parquet(
        tmp_path / "train-00000-of-00001.parquet"
    )
    assert load_prompts("toxigen", "en", tmp_path, 2)[0]["prompt"].tolist() == ["- a\n-", "- d\n-"], "one of each group"
    with pytest.raises(UserError, match=r"ToxiGen is English alone: no prompts in German \(de\)"):
        load_prompts("toxigen", "de", tmp_path)
    malformed = rows.assign(prompt_label=[2] + [1] * 59)
    malformed.to_parquet(tmp_path / "train-00000-of-00001.parquet")
    skipped = load_prompts("toxigen", "en", tmp_path)[1]
    assert [str(line) for line in skipped.rejected] == [
        "train-00000-of-00001.parquet:1: field 'prompt_label' should be a valid boolean, unable to interpret input"
    ]


def test_toxigens_annotated_part_has_no_prompts(tmp_path):
    (tmp_path / "human.csv").write_text("text,toxicity_human\nthree,4.5\n")
    with pytest.raises(UserError, match=r"annotated part does not have; add the raw part \(train"):
        load_prompts("toxigen", "en", tmp_path)
    assert languages_available("toxigen", ["en"], tmp_path) == []


def test_wikitext_in_every_form(tmp_path):
    paragraphs = ["", " = Title = ", " A paragraph of words . ", " Another one . "]
    pd.DataFrame({"text": paragraphs}).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    pd.DataFrame({"text": [" Held out . "]}).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    assert corpora.wikitext(tmp_path)[0]["text"].tolist() == ["A paragraph of words .", "Another one ."]
    (tmp_path / "plain.tokens").write_text("\n".join(paragraphs))
    assert len(corpora.wikitext(tmp_path / "plain.tokens")[0]) == 2
    assert corpora.wikitext(tmp_path, "test")[0]["text"].tolist() == ["Held out ."]


def test_only_the_data_sets_own_folders_tell_a_language(tmp_path):
    untold = [{"prompt": f"Satz {number}", "toxicity": 0.1} for number in range(3)]
    lines(tmp_path / "ptp/ptp-pt-br/x.jsonl", untold)
    assert len(corpora.polyglo_toxicity_prompts(tmp_path / "ptp", "pt")[0]) == 3
    lines(tmp_path / "other/gemma-3-270m-it/x.jsonl", untold)
    with pytest.raises(UserError, match="no prompts of PolygloToxicityPrompts in Italian"):
        corpora.polyglo_toxicity_prompts(tmp_path / "other", "it")
