"""Malformed data files: whatever their bytes, a reader gets rows or one line that names the file, never a traceback.

And nothing is lost silently: each line of a file is a row that is used, or counted and listed as skipped.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polydetox.core.errors import UserError
from polydetox.data.labelled import read_labelled
from polydetox.data.pairs import rtp_lx_pairs, toxicity_pairwise
from polydetox.data.parallel import parallel_sentences
from polydetox.data.prompts import load_prompts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["Prompt", "Index", "Completion", "BenignCompletion", "prompt_text", "unpert_gen_text", "pert_gen_text"]
FIELDS += ["text", "label", "prompt", "prompt_label", "lang", "toxicity"]
ROW = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)
LINES = st.lists(st.one_of(ROW.map(json.dumps), JSON.map(json.dumps), st.text(max_size=30)), max_size=5).map("\n".join)
CONTENT = st.one_of(LINES.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60),
                    st.lists(ROW, max_size=4).map(lambda rows: json.dumps(rows).encode()))  # fmt: skip

READERS = {
    "RTP_LX_DE.json": lambda folder: load_prompts("rtp-lx", "de", folder),
    "RTP_LX_EN.json": lambda folder: rtp_lx_pairs(folder, 0),
    "split_0.jsonl": lambda folder: toxicity_pairwise(folder),
    "de.jsonl": lambda folder: parallel_sentences("folder", "de", folder),
    "de.txt": lambda folder: parallel_sentences("folder", "de", folder),
    "hate_all_1k.txt": lambda folder: load_prompts("toxigen", "en", folder),
    "train.jsonl": lambda folder: load_prompts("toxigen", "en", folder),
    "ptp.jsonl": lambda folder: load_prompts("polyglo-toxicity-prompts", "de", folder),
    "texts.jsonl": lambda folder: read_labelled(folder / "texts.jsonl", 0.5),
    "texts.csv": lambda folder: read_labelled(folder / "texts.csv", 0.5),
    "texts.parquet": lambda folder: read_labelled(folder / "texts.parquet", 0.5),
}


@pytest.mark.parametrize("name", sorted(READERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENT)
def test_a_malformed_file_is_read_or_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    try:
        READERS[name](tmp_path)
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        assert name in said or str(tmp_path) in said or "toxicity_pairwise" in said, said


GOOD = st.builds(lambda index, word: {"Prompt": word, "Completion": "a", "BenignCompletion": "b", "Index": index,
                                      "prompt_text": word, "unpert_gen_text": "x", "pert_gen_text": "y", "text": word,
                                      "label": 1},
                 st.integers(0, 10**6), st.sampled_from(["Hi", "NA", " ", "\u2028Da", "null", ""]))  # fmt: skip
BAD = st.one_of(ROW.map(json.dumps), JSON.map(json.dumps),
                st.text(st.characters(exclude_characters="\n", codec="utf-8"), max_size=20))  # fmt: skip


@pytest.mark.parametrize("name", ["RTP_LX_DE.json", "split_0.jsonl", "texts.jsonl"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.lists(GOOD, min_size=60, max_size=70, unique_by=lambda row: row["Index"]), bad=st.lists(BAD, max_size=3),
       place=st.integers(0, 59))  # fmt: skip
def test_every_line_is_used_or_listed(tmp_path, name, good, bad, place):
    lines = [json.dumps(row, ensure_ascii=False) for row in good]
    lines[place:place] = bad
    (tmp_path / name).write_text("\n".join(lines), "utf-8")
    try:
        table, skipped = READERS[name](tmp_path)
    except UserError as error:  # all of them blank, or by chance a field that no row may have
        assert name in str(error)
        return
    # Blank as bytes: to a str, separators such as U+001F are spaces as well.
    written = sum(bool(line.encode().strip()) for line in lines)
    assert len(table) + skipped.blank + len(skipped.rejected) == written
    for rejected in skipped.rejected:
        assert lines[rejected.line - 1] in bad or '"Index"' in rejected.reason or rejected.field == "Index"
