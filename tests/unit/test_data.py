"""Prompts and preference pairs of other data sets: what is read, what is refused."""

from __future__ import annotations

import json

import pytest

from polydetox import data
from polydetox.errors import UserError
from polydetox.languages import LANGUAGES, rtp_lx_locale


def write_rtp_lx(folder, language, rows, array=False):
    folder.mkdir(exist_ok=True)
    file = folder / f"RTP_LX_{rtp_lx_locale(language)}.json"
    text = json.dumps(rows) if array else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(text, "utf-8")
    return file


def row(index, prompt="A prompt", toxic="bad words", benign="good words"):
    return {"Prompt": prompt, "Completion": toxic, "BenignCompletion": benign, "Index": index}


def test_project_prompts_are_parallel_in_every_language():
    ids = None
    for language in LANGUAGES:
        table, skipped = data.load_prompts("project", language)
        assert skipped == 0 and len(table) >= 24
        assert table["prompt_id"].is_unique and table["prompt"].is_unique
        assert ids is None or list(table["prompt_id"]) == ids
        ids = list(table["prompt_id"])
    assert len(data.load_prompts("project", "de", limit=5)[0]) == 5


def test_rtp_lx_is_ordered_by_index_and_reports_blank_prompts(tmp_path):
    folder = tmp_path / "r"
    write_rtp_lx(folder, "zh", [row("10", "十"), row("2", " 二 "), row("3", "NA"), row("1", "")])
    table, skipped = data.load_prompts("rtp-lx", "zh", folder)
    assert list(table["prompt_id"]) == ["rtp-lx-00002", "rtp-lx-00010"] and skipped == 2
    assert list(table["prompt"]) == [" 二", "十"]


def test_a_json_array_and_json_lines_read_the_same(tmp_path):
    rows = [row(0, "a\u2028b"), row(1, "c")]
    write_rtp_lx(tmp_path / "a", "en", rows)
    write_rtp_lx(tmp_path / "b", "en", rows, array=True)
    assert data.read_rtp_lx(tmp_path / "a", "en") == data.read_rtp_lx(tmp_path / "b", "en")


def test_errors_name_file_line_and_remedy(tmp_path, monkeypatch):
    folder = tmp_path / "r"
    file = write_rtp_lx(folder, "en", [row(0)])
    with pytest.raises(UserError, match=r"no RTP_LX_DE\.json for language 'de' \(found: EN\)"):
        data.load_prompts("rtp-lx", "de", folder)
    with pytest.raises(UserError, match="no such folder"):
        data.load_prompts("rtp-lx", "en", tmp_path / "missing")
    with pytest.raises(UserError, match="need their folder"):
        data.load_prompts("rtp-lx", "en")
    with pytest.raises(UserError, match="variable NOT_SET_ANYWHERE is not set"):
        data.load_prompts("rtp-lx", "en", "$NOT_SET_ANYWHERE")
    monkeypatch.setenv("RTP_HERE", str(folder))
    assert len(data.load_prompts("rtp-lx", "en", "$RTP_HERE")[0]) == 1
    file.write_text('{"Prompt": "a", "Index": 0}\n{"Prompt": \n')
    with pytest.raises(UserError, match=r"RTP_LX_EN\.json:2: not valid JSON"):
        data.load_prompts("rtp-lx", "en", folder)
    file.write_text('{"Promt": "a"}\n')
    with pytest.raises(UserError, match=r"row 1 has no field 'Prompt' \(it has: Promt\)"):
        data.load_prompts("rtp-lx", "en", folder)
    file.write_text('["a"]')
    with pytest.raises(UserError, match="expected an object"):
        data.load_prompts("rtp-lx", "en", folder)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        data.load_prompts("rtp-lx", "en", folder)


def test_nothing_evaluated_in_any_language_is_trained_on(tmp_path):
    folder = tmp_path / "r"
    write_rtp_lx(folder, "en", [row(index, f"prompt {index}") for index in range(10)])
    # German lacks rows 0 and 1, so its first three are 2, 3 and 4.
    write_rtp_lx(folder, "de", [row(index, f"Anfang {index}") for index in range(2, 10)])
    pairs = data.rtp_lx_pairs(folder, held_out_prompts=3)
    assert list(pairs["prompt_id"]) == [f"rtp-lx-{index:05d}" for index in range(5, 10)]
    assert pairs["chosen"][0] == " good words" and pairs["rejected"][0] == " bad words"
    assert len(data.rtp_lx_pairs(folder, 3, limit=2)) == 2


def test_pairs_leave_out_rows_without_completions(tmp_path):
    folder = tmp_path / "r"
    write_rtp_lx(folder, "en", [row(0), row(1, toxic="NA"), row(2, benign=None), row(3, benign="x", toxic="x")])
    assert list(data.rtp_lx_pairs(folder, 0)["prompt_id"]) == ["rtp-lx-00000"]


def test_toxicity_pairwise_parts(tmp_path):
    lines = [{"prompt_text": "He is", "unpert_gen_text": " nice", "pert_gen_text": "mean"}, {"prompt_text": "x"}]
    for part in ("split_0", "split_1"):
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pairs = data.toxicity_pairwise(tmp_path)
    assert pairs[["chosen", "rejected"]].values.tolist() == [[" nice", " mean"]] * 2
    assert pairs["prompt_id"].is_unique
    with pytest.raises(UserError, match=r"no \*\.jsonl"):
        data.toxicity_pairwise(tmp_path / "none")
    (tmp_path / "split_0.jsonl").write_text('{"text": "x"}')
    (tmp_path / "split_1.jsonl").unlink()
    with pytest.raises(UserError, match="is this toxicity_pairwise"):
        data.toxicity_pairwise(tmp_path)


def test_locale_names():
    assert rtp_lx_locale("zh") == "ZH-Hans" and rtp_lx_locale("de") == "DE"
    with pytest.raises(UserError, match="unknown language 'xx'"):
        rtp_lx_locale("xx")
