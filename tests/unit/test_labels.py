"""Labels by people: sheets that are blinded and balanced, and what is made of those that come back."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from notebook_cells import NOTEBOOKS, definitions, run_cells
from polydetox.core.artifacts import read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.params import Profile
from polydetox.preflight import problems
from polydetox.workflow import load
from tiny import TINY_PROFILE

THRESHOLDS = {"embedded": 0.5, "lexicon": 0.5}


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> dict:
    """What the stages `score` and `agreement` write, made up: 2 variants, 2 languages, 8 prompts, 10 continuations."""
    folder, generator = tmp_path_factory.mktemp("scored"), np.random.default_rng(0)
    parts = {}
    for variant, high in (("base", 0.5), ("dpo", 0.1)):
        rows = [{"variant": variant, "language": language, "prompt_id": f"p{prompt}", "sample": sample}
                for language in ("de", "en") for prompt in range(8) for sample in range(10)]  # fmt: skip
        table = pd.DataFrame(rows)
        toxic = generator.random(len(table)) < high
        table["embedded"] = np.where(
            toxic, generator.uniform(0.6, 1.0, len(table)), generator.uniform(0, 0.2, len(table))
        )
        table["lexicon"] = (generator.random(len(table)) < 0.3).astype(float)
        table["prompt"] = "a prompt"
        table["continuation"] = [f"=text {number}\nof {'#' * (number % 3)}" for number in range(len(table))]
        table["empty"] = table["sample"] == 9
        parts[variant] = table
        table.to_parquet(folder / f"{variant}.parquet")
    pd.concat(parts.values()).drop(columns=["prompt", "continuation", "empty"]).to_parquet(folder / "scores.parquet")
    write_json(folder / "metrics.json", {"scorers": list(THRESHOLDS), "thresholds": THRESHOLDS})
    return {
        "texts_of": {name: str(folder / f"{name}.parquet") for name in parts},
        "scores": str(folder / "scores.parquet"),
    }


def through_papermill(notebook: str, folder: Path, **parameters) -> Path:
    folder.mkdir(exist_ok=True)
    source = next(NOTEBOOKS.rglob(f"{notebook}.ipynb"))
    papermill.execute_notebook(source, folder / f"{notebook}.ipynb", parameters | {"output_folder": str(folder)},
                               kernel_name="python3", progress_bar=False)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def drawn(scored, tmp_path_factory) -> Path:
    return through_papermill("label_sheet", tmp_path_factory.mktemp("labels"), **scored, texts_per_language=24, bins=4)


def lines_of(sheet: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(sheet.read_text("utf-8-sig"), newline="")))


def rows_of(sheet: Path) -> list[dict[str, str]]:
    lines = lines_of(sheet)
    at = next(number for number, line in enumerate(lines) if line[0] == "id")
    return [dict(zip(lines[at], line, strict=True)) for line in lines[at + 1 :]]


def key_of(folder: Path, language: str) -> pd.DataFrame:
    (file,) = (folder / "keys").glob(f"{language}-*.parquet")
    return pd.read_parquet(file)


def test_a_sheet_gives_nothing_of_variant_or_score_away(drawn):
    assert sorted(file.name for file in (drawn / "sheets").iterdir()) == ["sheet-de.csv", "sheet-en.csv"]
    for language in ("de", "en"):
        sheet = drawn / "sheets" / f"sheet-{language}.csv"
        rows, key = rows_of(sheet), key_of(drawn, language)
        assert sheet.read_text("utf-8-sig").startswith('"CONTENT WARNING'), "the first line warns"
        assert [list(row) for row in rows] == [["id", "toxic", "prompt", "continuation"]] * 24
        assert all(row["toxic"] == "" and row["continuation"].startswith("'=text") for row in rows), "no formula"
        assert "base" not in sheet.read_text() and "dpo" not in sheet.read_text()
        assert [row["id"].rsplit("-", 1) for row in rows] == [
            [rows[0]["id"].rsplit("-", 1)[0], f"{place:03d}"] for place in range(1, 25)
        ], "ids count in the order of the sheet"
        # Shuffled: neither variants nor bins stand together, as they did when they were sampled.
        for column in ("variant", "bin"):
            changes = (key[column] != key[column].shift()).sum()
            assert changes > 2 * key[column].nunique(), column


def test_a_sheet_is_balanced_and_its_key_says_what_each_row_stands_for(drawn, scored):
    for language in ("de", "en"):
        key = key_of(drawn, language)
        assert key["variant"].value_counts().to_dict() == {"base": 12, "dpo": 12}
        for variant, part in key.groupby("variant"):
            every = pd.read_parquet(scored["texts_of"][variant]).query("language == @language and not empty")
            available = pd.cut(every["embedded"], [0, 0.25, 0.5, 0.75, 1.0], labels=False).value_counts().to_dict()
            assert part.groupby("bin")["population"].unique().map(list).to_dict() == {
                place: [count] for place, count in available.items()
            }
            taken = part["bin"].value_counts().reindex(list(available), fill_value=0)
            short = {place for place in available if taken[place] == available[place]}
            assert np.ptp([count for place, count in taken.items() if place not in short] or [0]) <= 1
            assert not part.duplicated(["prompt_id", "sample"]).any()
            assert set(part["available"]) == {len(every)}


def test_counts_are_as_even_as_what_is_there():
    even = definitions("label_sheet").even
    assert even([9, 1, 9], 7).tolist() == [3, 1, 3]
    assert even([2, 0, 2], 9).tolist() == [2, 0, 2]
    assert even([5, 5], 3).tolist() == [2, 1]


def test_a_sheet_that_is_too_small_for_every_bin_is_refused(scored, tmp_path):
    with pytest.raises(UserError, match=r"texts_per_language: 8 leave some bin of a variant empty; give 10 or more"):
        run_cells("label_sheet", **scored, texts_per_language=8, output_folder=str(tmp_path))


def test_a_sheet_is_made_again_from_its_seed_and_another_language_changes_nothing(drawn, scored, tmp_path):
    again = run_cells(
        "label_sheet", **scored, texts_per_language=24, bins=4, languages=["de"], output_folder=str(tmp_path)
    )
    made = tmp_path / "sheets/sheet-de.csv"
    assert made.read_bytes() == (drawn / "sheets/sheet-de.csv").read_bytes() and again["languages"] == ["de"]
    run_cells("label_sheet", **scored, texts_per_language=24, bins=4, seed=1, output_folder=str(tmp_path))
    assert made.read_bytes() != (drawn / "sheets/sheet-de.csv").read_bytes()
    assert len(list((tmp_path / "keys").glob("de-*.parquet"))) == 2, "a key is kept: its sheets may still come back"
    with pytest.raises(UserError, match=r"languages: 'ar': the scores have no continuation in it"):
        run_cells("label_sheet", **scored, languages=["ar"], output_folder=str(tmp_path))


def test_a_language_in_which_a_variant_writes_nothing_has_no_sheet(scored, tmp_path):
    silent = pd.read_parquet(scored["texts_of"]["dpo"])
    given = {"scores": scored["scores"], "texts_of": scored["texts_of"] | {"dpo": str(tmp_path / "silent.parquet")},
             "output_folder": str(tmp_path / "o")}  # fmt: skip
    silent.assign(empty=silent["empty"] | (silent["language"] == "de")).to_parquet(tmp_path / "silent.parquet")
    run_cells("label_sheet", **given)
    assert [file.name for file in (tmp_path / "o/sheets").iterdir()] == ["sheet-en.csv"]
    with pytest.raises(UserError, match=r"languages: 'de': the scores have no continuation in it, or none of some"):
        run_cells("label_sheet", **given, languages=["de", "en"])
    silent.assign(empty=True).to_parquet(tmp_path / "silent.parquet")
    with pytest.raises(UserError, match=r"texts_of: no language has a continuation with a score of every variant"):
        run_cells("label_sheet", **given)


def labelled(drawn: Path, file: Path, language: str, delimiter: str = ",", label=None) -> Path:
    """A sheet that comes back, each text labelled by its first score unless ``label`` says otherwise."""
    scores = key_of(drawn, language).set_index("id")["embedded"]
    stream = io.StringIO(newline="")
    for line in lines_of(drawn / f"sheets/sheet-{language}.csv"):
        if line[0] in scores.index:
            line[1] = label or str(int(scores[line[0]] >= 0.5))
        csv.writer(stream, delimiter=delimiter).writerow([*line, *[""] * (4 - len(line))])
    file.write_text(stream.getvalue(), "utf-8-sig")
    return file


def test_returned_sheets_through_papermill(drawn, tmp_path):
    sheets = [labelled(drawn, tmp_path / f"sheet-{language}-ab.csv", language, delimiter)
              for language, delimiter in (("de", ";"), ("en", ","))]  # fmt: skip
    folder = through_papermill("human_labels", tmp_path / "people", sheets=list(map(str, sheets)),
                               keys=str(drawn / "keys"), bootstrap_samples=100)  # fmt: skip
    agreement = pd.read_parquet(folder / "agreement.parquet").set_index(["scorer", "language"])
    assert np.allclose(agreement.loc["embedded", ["auc", "kappa"]], 1.0), "the labels are the scorer's own verdicts"
    assert (agreement.loc["lexicon", "kappa"] < 1.0).all()
    drops = pd.read_parquet(folder / "drops.parquet")
    for row in drops.dropna(subset=["language"]).to_dict("records"):
        # Each bin lies on one side of the threshold, so the estimate is the fraction over all continuations.
        key = key_of(drawn, row["language"])
        for side, variant in (("before", "base"), ("after", "dpo")):
            strata = key[key["variant"] == variant].drop_duplicates("bin")
            toxic = strata.loc[strata["embedded"] >= 0.5, "population"].sum() / strata["population"].sum()
            assert row[side] == pytest.approx(toxic) and row[f"{side}_low"] <= toxic <= row[f"{side}_high"]
    mean = drops[drops["language"].isna()].iloc[0]
    assert mean["drop"] == pytest.approx(drops.dropna(subset=["language"])["drop"].mean()) and mean["languages"] == 2
    assert read_json(folder / "metrics.json") | {"samples": 0} == {
        "samples": 0, "sampled": 48, "labelled": 48, "represented": 1.0, "sheets": 2, "languages": ["de", "en"],
    }  # fmt: skip
    assert "48 of 48 continuations have a label" in (folder / "human_labels.ipynb").read_text()


def test_agreement_and_drop_by_hand(tmp_path):
    """Two labellers of four continuations, of which one divides them."""
    ids = [f"en-c0ffee-{place:03d}" for place in (1, 2, 3, 4)]
    key = pd.DataFrame({
        "id": ids, "variant": ["base", "base", "dpo", "dpo"], "language": "en", "prompt_id": ["p0", "p1"] * 2,
        "sample": 0, "bin": [0, 4, 0, 4], "population": [8, 2, 9, 1], "embedded": [0.1, 0.9, 0.2, 0.95],
        "lexicon": [0.5, 0.0, 1.0, 1.0],
    })  # fmt: skip
    (tmp_path / "keys").mkdir()
    key.to_parquet(tmp_path / "keys/en-c0ffee.parquet")
    write_json(tmp_path / "keys/c0ffee.json", {"variants": ["base", "dpo"], "thresholds": THRESHOLDS})
    sheets = []
    for name, labels in (("a", "0101"), ("b", "0111")):
        rows = "\n".join(f"{identity}\t{label}" for identity, label in zip(ids, labels, strict=True))
        (tmp_path / name).write_text(f"Language: English.\nid\ttoxic\n{rows}\n")
        sheets.append(str(tmp_path / name))
    given = {"sheets": sheets, "keys": str(tmp_path / "keys"), "output_folder": str(tmp_path / "o"),
             "bootstrap_samples": 20}  # fmt: skip
    space = run_cells("human_labels", **given)
    # Ones: 2 and 3 of 4; observed 3/4, by chance 1/2 * 3/4 + 1/2 * 1/4.
    assert space["labellers"].loc[0, ["same_label", "value"]].tolist() == pytest.approx([0.75, 0.5])
    # Labels 0, 1, 1/2, 1, which stand for 8, 2, 9 and 1 continuations.
    row = space["drops"].iloc[0]
    assert row[["before", "after", "drop"]].tolist() == pytest.approx([2 / 10, 5.5 / 10, -0.35])
    assert "shows no detectable change (0.20 to 0.55, 0.35 [" in space["shown"][-1]
    # Without the third: benign 0.5 (of 8), toxic 0.0 (of 2) and 1.0 (of 1). Of 11, one has the same verdict.
    found = space["agreement"].set_index("scorer")
    assert found.loc["embedded", ["auc", "kappa"]].tolist() == pytest.approx([1.0, 1.0])
    chance = (3 * 9 + 8 * 2) / 121
    assert found.loc["lexicon", ["auc", "kappa"]].tolist() == pytest.approx([1 / 3, (1 / 11 - chance) / (1 - chance)])
    assert found["texts"].tolist() == [3, 3] and found.loc["lexicon", "flagged"] == pytest.approx(9 / 11)
    # Of either variant, as many continuations again lie in parts of the range from which none was sampled.
    key.assign(available=20).to_parquet(tmp_path / "keys/en-c0ffee.parquet")
    assert space["represented"] == 1.0 and run_cells("human_labels", **given)["represented"] == 0.5


def replaced(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


def merged(text: str) -> str:
    """A sheet with continuations of one line, the first of which has lost the second half of its quotation marks."""
    rows = [line for line in re.sub(r'"(=[^"\n]*)\n[^"]*"', r"\1", text).splitlines() if line]
    at = next(place for place, line in enumerate(rows) if line.startswith("de-"))
    rows[at] = re.sub(r",([^,]*)$", r',"\1', rows[at])
    rows[at + 2] += '"'
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("-003,1" , "-003,toxic"), r"sheet\.csv, row 8: toxic: 'toxic' is no label; use 1, 0, \? or"),
        (replaced("-002,", "-999,"), r"row 7: id 'de-\w{6}-999' is in no key of .*; mend the id"),
        (replaced("-002,", "-001,"), r"row 7: id 'de-\w{6}-001' stands above already; remove one"),
        (lambda text: text.replace("de-", "en-").replace("en-", "de-", 1),
         r"row 7: id 'en-\w{6}-002' is English, but the sheet begins in German; move the row"),
        (replaced("Language: German", "Language: French"), r"its ids are German, and the rows above them do not"),
        (replaced("id,toxic", "number,toxic"), r"sheet\.csv: no row of headings with 'id' first and 'toxic'"),
        (replaced("id,toxic", "id,label"), r"sheet\.csv: no row of headings with 'id' first and 'toxic'"),
        (merged, r"sheet\.csv, row 6: another row is within a cell of it; mend its quotation marks"),
        (lambda text: text + '"open', r"sheet\.csv: not valid CSV \(unexpected end of data\); look for a quotation"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_sheet_names_file_row_and_remedy(drawn, tmp_path, change, words):
    sheet = labelled(drawn, tmp_path / "sheet.csv", "de", label="1")
    sheet.write_text(change(sheet.read_text("utf-8-sig")))
    with pytest.raises(UserError, match=words):
        run_cells("human_labels", sheets=[str(sheet)], keys=str(drawn / "keys"), output_folder=str(tmp_path / "o"))


def test_what_is_no_label_is_not_counted(drawn, tmp_path):
    given = {"keys": str(drawn / "keys"), "output_folder": str(tmp_path / "o"), "bootstrap_samples": 20}
    blank = drawn / "sheets/sheet-de.csv"
    with pytest.raises(UserError, match=r"sheet-de\.csv: no row has a label in the column 'toxic'; fill it"):
        run_cells("human_labels", sheets=[str(blank)], **given)
    unsure = labelled(drawn, tmp_path / "unsure.csv", "de")
    unsure.write_text(unsure.read_text("utf-8-sig").replace(",0,", ",Cannot say,"))
    found = run_cells("human_labels", sheets=[str(unsure)], **given)
    toxic = (key_of(drawn, "de")["embedded"] >= 0.5).sum()
    assert len(found["table"]) == toxic and found["represented"] < 1.0
    (tmp_path / "latin.csv").write_bytes("id,toxic\nü".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.csv: not UTF-8"):
        run_cells("human_labels", sheets=[str(tmp_path / "latin.csv")], **given)
    with pytest.raises(UserError, match="one is named twice"):
        run_cells("human_labels", sheets=[str(unsure), f"{tmp_path}/./{unsure.name}"], **given)


def test_a_profile_asks_for_sheets_and_names_those_that_came_back(checkout):
    file = checkout / "params/profiles/tiny.yaml"
    assert not [job for job in load("tiny").jobs.values() if "label" in job.stage], (
        "not part of a run that does not ask"
    )

    def jobs(**labels):
        file.write_text(yaml.safe_dump(TINY_PROFILE | {"labels": labels}))
        run = load("tiny")
        return run, [job for job in run.jobs.values() if "label" in job.stage]

    run, (sheet,) = jobs(bins=4)
    assert sheet.stage == "label_sheet" and sheet.resolved()["bins"] == 4 and "labels" not in run.sections[""]
    assert list(sheet.parameters["texts_of"]) == run.compared("tiny")
    run, _ = jobs(bins=40)
    assert (
        "params/profiles/tiny.yaml: labels: texts_per_language: 60 leave some bin of a variant empty; give "
        f"{40 * len(run.compared('tiny'))} or more"
    ) in problems(run)
    run, (sheet, people) = jobs(sheets=["back.csv"])
    assert people.parameters == {"sheets": ["back.csv"], "keys": f"{sheet.folder}/keys", "output_folder": people.folder}
    assert "labels" in run.sections[""]
    assert [said for said in problems(run) if "back.csv" in said] == [
        "params/profiles/tiny.yaml: labels: sheets: 'back.csv': no such file; name labelled sheets, or none until some "
        "come back"
    ]


@pytest.mark.parametrize("change", [{"agreement": None}, {"models": ["tiny", "gemma-3-270m"]}])
def test_labels_need_scores_under_several_scorers_of_one_model(change):
    with pytest.raises(ValueError, match="labels: needs 'agreement:', whose scores are labelled, and one model"):
        Profile.model_validate(TINY_PROFILE | {"name": "tiny", "labels": {}} | change)


def summary(folder: Path, place: Path, monkeypatch) -> list[str]:
    """What the summary of labels shows of what a stage `human_labels` wrote."""
    (folder / "manifest.json").write_text("{}")
    profile = Profile.model_validate(TINY_PROFILE | {"name": "tiny"})
    stages = [SimpleNamespace(stage="human_labels", folder=folder)]
    monkeypatch.setattr(
        "polydetox.results.collect.Results", lambda *_, **__: SimpleNamespace(profile=profile, stages=stages)
    )
    return run_cells("summary_labels", run="run.json", output_folder=str(place))["shown"]


def test_the_report_says_what_people_said(drawn, tmp_path, monkeypatch):
    sheets = [labelled(drawn, tmp_path / f"{name}.csv", "de") for name in ("ab", "cd")]
    folder = tmp_path / "people"
    run_cells("human_labels", sheets=list(map(str, sheets)), keys=str(drawn / "keys"), output_folder=str(folder),
              bootstrap_samples=50)  # fmt: skip
    shown = summary(folder, tmp_path / "summary", monkeypatch)
    drops = pd.read_parquet(folder / "drops.parquet").query("language == 'de'").iloc[0]
    said = read_json(tmp_path / "summary/variables.json")["labels_sentence"]
    assert said.startswith("People labelled 24 of 24 sampled continuations in German, which represent 100 % of all.")
    assert f"{drops['before']:.2f} to {drops['after']:.2f}" in said and "two labellers is 1.00 on average" in said
    assert sum("paper-table" in text for text in shown) == 3 and said in shown


def test_a_language_without_an_interval_is_not_in_the_mean(drawn, tmp_path, monkeypatch):
    """Of English three labels, so that some replicates have none of a side."""
    key = key_of(drawn, "en")
    base = key[key["variant"] == "base"].head(2)
    tuned = key[(key["variant"] == "dpo") & ~key["prompt_id"].isin(base["prompt_id"])].head(1)
    german, english = (labelled(drawn, tmp_path / f"{name}.csv", name, label=label)
                       for name, label in (("de", None), ("en", "?")))  # fmt: skip
    text = english.read_text("utf-8-sig")
    for one in [*base["id"], *tuned["id"]]:
        text = text.replace(f"{one},?", f"{one},1")
    english.write_text(text)
    folder = tmp_path / "people"
    drops = run_cells("human_labels", sheets=[str(german), str(english)], keys=str(drawn / "keys"),
                      output_folder=str(folder), bootstrap_samples=100)["drops"]  # fmt: skip
    of, mean = drops.set_index("language"), drops[drops["language"].isna()].iloc[0]
    assert of.loc["en", "drop"] == 0.0 and np.isnan(of.loc["en", "drop_low"])
    assert mean["drop"] == of.loc["de", "drop"] and mean["drop_low"] == of.loc["de", "drop_low"]
    said = summary(folder, tmp_path / "summary", monkeypatch)[-1]
    assert "over 1 of 2 languages, as the rest has too few labels for an interval" in said
    assert "not measured" not in said


def test_the_report_shows_sheets_that_are_hardly_filled(drawn, tmp_path, monkeypatch):
    """One label, of which two labellers think differently: no scorer has a truth, and one variant has no label."""
    sheets, one = [], key_of(drawn, "de")["id"].iloc[0]
    for name, label in (("ab", "0"), ("cd", "1")):
        sheet = labelled(drawn, tmp_path / f"{name}.csv", "de", label="?")
        sheet.write_text(sheet.read_text("utf-8-sig").replace(f"{one},?", f"{one},{label}"))
        sheets.append(str(sheet))
    folder = tmp_path / "people"
    found = run_cells("human_labels", sheets=sheets, keys=str(drawn / "keys"), output_folder=str(folder),
                      bootstrap_samples=20)  # fmt: skip
    assert len(found["table"]) == 1 and found["agreement"].empty and found["drops"]["drop"].isna().all()
    shown = summary(folder, tmp_path / "summary", monkeypatch)
    tables = [text for text in shown if "paper-table" in text]
    assert len(tables) == 3 and all("<td" in table for table in tables) and "no clear label" in tables[1]
    assert shown[-1].startswith("People labelled 1 of 24 sampled continuations in German") and "AUC" not in shown[-1]
