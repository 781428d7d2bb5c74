"""Prompts and preference pairs of other data sets: what is read, what is refused."""

from __future__ import annotations

import json

import pytest

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES, code_of_locale, rtp_lx_locales
from polydetox.data.pairs import follows, rtp_lx_pairs, toxicity_pairwise
from polydetox.data.prompts import load_prompts
from polydetox.data.rows import read_rows, writable
from polydetox.data.rtp_lx import rtp_lx_rows


def write_rtp_lx(folder, language, rows, array=False):
    folder.mkdir(exist_ok=True)
    file = folder / f"RTP_LX_{rtp_lx_locales(language)[0]}.json"
    text = json.dumps(rows) if array else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(text, "utf-8")
    return file


def row(index, prompt="A prompt", toxic="bad words", benign="good words"):
    return {"Prompt": prompt, "Completion": toxic, "BenignCompletion": benign, "Index": index}


def test_project_prompts_are_parallel_in_every_language():
    ids = None
    for language in LANGUAGES:
        table, skipped = load_prompts("project", language)
        assert not skipped and len(table) >= 24
        assert table["prompt_id"].is_unique and table["prompt"].is_unique
        assert ids is None or list(table["prompt_id"]) == ids
        ids = list(table["prompt_id"])
    assert len(load_prompts("project", "de", limit=5)[0]) == 5


def test_rtp_lx_is_ordered_by_index_and_reports_blank_prompts(tmp_path):
    folder = tmp_path / "r"
    write_rtp_lx(folder, "zh", [row("10", "十"), row("2", " 二 "), row("3", "NA"), row("1", "")])
    table, skipped = load_prompts("rtp-lx", "zh", folder)
    assert list(table["prompt_id"]) == ["rtp-lx-00002", "rtp-lx-00010"]
    assert skipped.record() == {"blank": 2, "rejected": 0, "rejected_lines": []}
    assert list(table["prompt"]) == [" 二", "十"]


def test_a_json_array_and_json_lines_read_the_same(tmp_path):
    rows = [row(0, "a\u2028b"), row(1, "c")]
    write_rtp_lx(tmp_path / "a", "en", rows)
    write_rtp_lx(tmp_path / "b", "en", rows, array=True)
    found = [rtp_lx_rows(tmp_path / name, "en")[0] for name in "ab"]
    assert found[0].equals(found[1]) and found[0]["prompt"].tolist() == ["a\u2028b", "c"]


def test_errors_name_file_line_and_remedy(tmp_path, monkeypatch):
    folder = tmp_path / "r"
    file = write_rtp_lx(folder, "en", [row(0)])
    with pytest.raises(UserError, match=r"no RTP_LX_DE\.json for language 'de' \(found: EN\)"):
        load_prompts("rtp-lx", "de", folder)
    with pytest.raises(UserError, match="no such folder"):
        load_prompts("rtp-lx", "en", tmp_path / "missing")
    with pytest.raises(UserError, match="need their folder"):
        load_prompts("rtp-lx", "en")
    with pytest.raises(UserError, match="variable NOT_SET_ANYWHERE is not set"):
        load_prompts("rtp-lx", "en", "$NOT_SET_ANYWHERE")
    monkeypatch.setenv("RTP_HERE", str(folder))
    assert len(load_prompts("rtp-lx", "en", "$RTP_HERE")[0]) == 1
    file.write_text('{"Prompt": "a", "Index": 0}\n{"Prompt": \n')
    with pytest.raises(UserError, match=r"RTP_LX_EN\.json:2: not valid JSON"):
        load_prompts("rtp-lx", "en", folder)
    file.write_text('{"Promt": "a"}\n')
    with pytest.raises(
        UserError, match=r"RTP_LX_EN\.json:1: field 'Prompt' is missing; did you mean 'Promt'\? \(it has: Promt\)"
    ):
        load_prompts("rtp-lx", "en", folder)
    file.write_text('["a"]')
    with pytest.raises(UserError, match="expected an object"):
        load_prompts("rtp-lx", "en", folder)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_prompts("rtp-lx", "en", folder)


@pytest.mark.parametrize(("content", "words"), [
    ("one\r\ntwo\r\n".encode("utf-16"), "own.txt: not UTF-8 text, but perhaps UTF-16"),
    ("one\ntwo\n".encode("utf-16-le"), "own.txt: not UTF-8 text, but perhaps UTF-16"),
    (b"one\rtwo\r", None),
    (b"one\r\ntwo", None),
])  # fmt: skip
def test_lines_of_a_text_are_those_of_any_system(tmp_path, content, words):
    (tmp_path / "own.txt").write_bytes(content)
    if words is None:
        assert [row["text"] for _, row in read_rows(tmp_path / "own.txt").rows] == ["one", "two"]
    else:
        with pytest.raises(UserError, match=words):
            read_rows(tmp_path / "own.txt")


def test_a_csv_has_no_more_cells_than_headings(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("\ufeff\n,,\nid,text,label,,\n1,NA,0,,\n  \n2,nice, day,0\n3\n4,{},1\n".format("x" * 200_000))
    found = read_rows(file)
    assert [(line, row["id"], row["text"][:2], row["label"]) for line, row in found.rows] == [
        (1, "1", "NA", "0"), (3, "3", "", ""), (4, "4", "xx", "1")]  # fmt: skip
    assert [str(one) for one in found.rejected] == ["own.csv:2: has 4 cells, and 3 columns have a heading"]
    for content, words in (("a,a\n1,2\n", r"own\.csv:1: not valid CSV .two columns have one heading"),
                           ('a,b\n1,"open\n2,3\n', r"own\.csv:3: not valid CSV .unexpected end of data")):  # fmt: skip
        file.write_text(content)
        with pytest.raises(UserError, match=words):
            read_rows(file)


def test_a_key_is_given_once_and_a_text_has_no_nul(tmp_path):
    file = tmp_path / "own.jsonl"
    for first in ('{"a": 1, "a": 2}', '{"a": 1, "b": "\0"}'):
        file.write_text(f'{first}\n{{"a": 1}}\n{first}\n')
        found = read_rows(file)
        assert [line for line, _ in found.rows] == [2] and [one.line for one in found.rejected] == [1, 3]
    file.write_text('[{"a": 1, "a": 2}]')
    with pytest.raises(UserError, match=r"own\.jsonl: key 'a' is given twice in one object"):
        read_rows(file)
    with pytest.raises(ValueError, match="NUL"):
        writable("a\0b")


def test_every_version_of_rtp_lx_is_read(tmp_path):
    """The fields of September 2023, of May 2024 and of version 1.5, whose rows have no toxic completion."""
    first = {"Prompt": "a", "Completion": "", "Index": "7", "Locale": "Pt-Br", "Dialect": "",
             "OriginalMetadata": {"Filename": "f", "Begin": "1", "End": "2"}, "Annotations": {"Toxicity": 2.0},
             "AnnotationsRaw": {"Toxicity": [2, 2, 2]}}  # fmt: skip
    second = {**row(8, "b"), "Locale": "PT", "PromptAnnotations": {"Toxicity": 2}}
    third = {"Prompt": "c", "BenignCompletion": "d", "Index": 9, "Locale": "PT", "PromptAnnotations": {"Toxicity": 1}}
    write_rtp_lx(tmp_path, "pt", [first, second, third]).rename(tmp_path / "RTP_LX_PT-BR.json")
    table, skipped = load_prompts("rtp-lx", "pt", tmp_path)
    assert list(table["prompt_id"]) == ["rtp-lx-00007", "rtp-lx-00008", "rtp-lx-00009"] and not skipped
    write_rtp_lx(tmp_path, "pt", [second])  # later versions have PT, which comes first
    assert list(load_prompts("rtp-lx", "pt", tmp_path)[0]["prompt"]) == ["b"]


def test_a_few_malformed_lines_are_left_out_and_listed(tmp_path):
    rows = [json.dumps(row(index, f"prompt {index}")) for index in range(100)]
    rows[3] = '{"Prompt": "cut'
    rows[40] = json.dumps(row(40, prompt=["a", "list"]))
    rows[41] = json.dumps(row("x4"))
    rows[42] = json.dumps(row(2))
    (tmp_path / "RTP_LX_EN.json").write_text("\n".join(rows))
    table, skipped = load_prompts("rtp-lx", "en", tmp_path)
    assert len(table) == 96
    assert skipped.record() == {"blank": 0, "rejected": 4, "rejected_lines": [
        "RTP_LX_EN.json:4: not valid JSON (Unterminated string starting at)",
        "RTP_LX_EN.json:41: field 'Prompt' should be a valid string",
        "RTP_LX_EN.json:42: field 'Index' should be a valid integer, unable to parse string as an integer",
        "RTP_LX_EN.json:43: field 'Index' is that of line 3 as well",
    ]}  # fmt: skip
    assert "4 malformed lines skipped (RTP_LX_EN.json:4: not" in str(skipped) and "and 1 more" in str(skipped)
    rows[50:53] = ["null", "[1]", "{}"]
    (tmp_path / "RTP_LX_EN.json").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"EN\.json:4: not valid JSON .*; 7 of 100 rows are so: mend or remove them"):
        load_prompts("rtp-lx", "en", tmp_path)


def test_a_reason_never_quotes_a_text(tmp_path):
    lines = [json.dumps(row(index)) for index in range(40)] + ['{"Prompt": 5, "Index": "SLUR"}', "SLUR"]
    (tmp_path / "RTP_LX_EN.json").write_text("\n".join(lines))
    _, skipped = load_prompts("rtp-lx", "en", tmp_path)
    assert len(skipped.rejected) == 2 and "SLUR" not in json.dumps(skipped.record())


def test_nothing_evaluated_in_any_language_is_trained_on(tmp_path):
    folder = tmp_path / "r"
    english = [row(index, f"prompt {index}") for index in range(12)]
    english[9]["Prompt"] = '"Prompt  0..."'  # the text of an evaluated one
    write_rtp_lx(folder, "en", english)
    # German lacks rows 0 and 1, so its first three are 2, 3 and 4; English row 5 is held out as a neighbour, since
    # some languages are shifted by one.
    write_rtp_lx(folder, "de", [row(index, f"Anfang {index}") for index in range(2, 12)])
    pairs, skipped = rtp_lx_pairs(folder, held_out_prompts=3)
    assert list(pairs["prompt_id"]) == [f"rtp-lx-{index:05d}" for index in (6, 7, 8, 10, 11)] and not skipped
    assert pairs["chosen"][0] == " good words" and pairs["rejected"][0] == " bad words"
    with pytest.raises(UserError, match=r"no pairs: .* \('prompts: limit:' is 11\)"):
        rtp_lx_pairs(folder, 11)


def test_pairs_are_refused_where_nothing_tells_what_translates_what(tmp_path):
    write_rtp_lx(tmp_path, "en", [row(index, f"prompt {index}") for index in range(9)])
    file = write_rtp_lx(tmp_path, "fr", [{"Prompt": f"début {index}"} for index in range(9)])
    with pytest.raises(UserError, match=rf"{file.name}: rows without field 'Index'"):
        rtp_lx_pairs(tmp_path, 3)
    assert len(rtp_lx_pairs(tmp_path, 0)[0]) == 9, "nothing of RTP-LX is evaluated"


def test_pairs_leave_out_rows_without_completions(tmp_path):
    folder = tmp_path / "r"
    write_rtp_lx(folder, "en", [row(0), row(1, toxic="NA"), row(2, benign=None), row(3, benign="x", toxic="x")])
    pairs, skipped = rtp_lx_pairs(folder, 0)
    assert list(pairs["prompt_id"]) == ["rtp-lx-00000"] and skipped.blank == 2


@pytest.mark.parametrize(("prompt", "completion", "wanted"), [
    # A word, and what is written like one.
    ("He is a", "friend", " friend"), ("He is", "'til noon", " 'til noon"), ("It costs", "$5", " $5"),
    ("See", "@someone", " @someone"), ("See", "#this", " #this"), ("He", "(who else)", " (who else)"),
    ("He wrote", "*that*", " *that*"), ("You", "& me", " & me"),
    # Stops, closing brackets and contractions belong to the word before.
    ("He is", ", I think", ", I think"), ("He is", ".", "."), ("Is he", "? No", "? No"),
    ("(as he is", ") now", ") now"),
    ("He", "'s here", "'s here"), ("They", "’ve gone", "’ve gone"), ("the dogs", "' house", "' house"),
    # A quotation mark opens before a word, and closes before a space or punctuation.
    ("She said:", '"Go away"', ' "Go away"'), ("She said:", "“Go away”", " “Go away”"), ("He", "'went'", " 'went'"),
    ('a "friend', '" of mine', '" of mine'), ('a "friend', '", he said', '", he said'), ('"Go', '"', '"'),
    ("a “friend", "” of mine", "” of mine"), ("He said", "\"'Go' is", " \"'Go' is"), ("'a \"b", "\"' is", "\"' is"),
    # A hyphen joins, a dash stands alone; so do slashes.
    ("self", "-made", "-made"), ("this", "- he said", " - he said"), ("this", "— he said", " — he said"),
    ("and", "/or", "/or"), ("this", "/ that", " / that"),
    # What the prompt ends in: an opening mark or a hyphen after a word is followed by its word at once.
    ("He said “", "no", "no"), ('He said "', "no", "no"), ("He said, '", "no", "no"), ("He (", "no", "no"),
    ("self-", "made", "made"), ("and/", "or", "or"), ('"', "no", "no"),
    ('the "friend"', "went", " went"), ('"Go,"', "he said", " he said"), ("the dogs'", "house", " house"),
    ("he —", "who", " who"), ("red /", "blue", " blue"), ("f***", "you", " you"), ("(again)", "he", " he"),
    # White space of the file stays.
    ("He is", " 's", " 's"), ("He is a", " friend ", " friend"), ("He said “", "\nno", "\nno"),
])  # fmt: skip
def test_a_completion_follows_its_prompt_as_english_is_written(prompt, completion, wanted):
    assert follows(prompt, completion) == wanted


def test_pairs_of_rtp_lx_are_joined_with_spaces(tmp_path):
    rows = [
        {
            "Index": 0,
            "Prompt": '"Leave me alone" she said',
            "Completion": ' "you fool"',
            "BenignCompletion": "(and so on)",
        },
        {"Index": 1, "Prompt": "He is a ", "Completion": "\n\nfool", "BenignCompletion": "friend"},
    ]
    (tmp_path / "RTP_LX_EN.json").write_text("\n".join(map(json.dumps, rows)))
    pairs, _ = rtp_lx_pairs(tmp_path, 0)
    assert pairs["rejected"].tolist() == [' "you fool"', " fool"]
    assert pairs["chosen"].tolist() == [" (and so on)", " friend"]


def test_toxicity_pairwise_parts(tmp_path):
    good = {"prompt_text": "He is", "unpert_gen_text": " nice", "pert_gen_text": "mean"}
    lines = [good, good | {"pert_gen_text": "NA"}] + [good] * 28 + [{"prompt_text": "x"}]
    for part in ("split_0", "split_1"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs, skipped = toxicity_pairwise(tmp_path)
    assert pairs[["chosen", "rejected"]].values.tolist() == [[" nice", " mean"]] * 58
    assert pairs["prompt_id"].is_unique
    assert skipped.blank == 2 and [str(line) for line in skipped.rejected] == [
        f"split_{part}.jsonl:31: field 'unpert_gen_text' is missing" for part in (0, 1)]  # fmt: skip
    with pytest.raises(UserError, match=r"no \*\.jsonl"):
        toxicity_pairwise(tmp_path / "none")
    (tmp_path / "split_0.jsonl").write_text('{"text": "x"}')
    missing = r"split_0\.jsonl:1: field 'prompt_text' is missing \(it has: text\).*if it is toxicity_pairwise"
    with pytest.raises(UserError, match=missing):
        toxicity_pairwise(tmp_path)


def test_locale_names_map_both_ways():
    for language in LANGUAGES:
        assert {code_of_locale(locale) for locale in rtp_lx_locales(language)} == {language}
    assert rtp_lx_locales("zh") == ("ZH-Hans",) and code_of_locale("pt-br") == "pt"
    with pytest.raises(UserError, match="unknown language 'xx'"):
        rtp_lx_locales("xx")
    assert code_of_locale("no_NB") == "no-nb"
    assert code_of_locale("ZH-Hanz") is None


def test_other_locales_of_a_folder_are_known_but_not_supported(tmp_path):
    for locale in ("EN", "SW", "XX"):
        (tmp_path / f"RTP_LX_{locale}.json").write_text(json.dumps(row(0)))
    with pytest.raises(UserError, match=r"found: EN, SW, XX"):
        load_prompts("rtp-lx", "de", tmp_path)
