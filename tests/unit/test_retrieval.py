"""Retrieval and its correlation with the drop of toxicity, against hand-made cases and brute force."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from scipy.stats import t as t_distribution

from notebook_cells import definitions, run_cell
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked
from polydetox.data.parallel import parallel_sentences
from polydetox.metrics.retrieval import retrieval_figures
from polydetox.stats.correlation import correlation, line


def test_retrieval_by_hand():
    """Sentence 0 and 2 find their translation from English; all but 2 are found from the other side."""
    english = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    other = np.array([[2.0, 0.1], [1.0, 2.0], [1.0, 0.9]])
    found = retrieval_figures(english, other)
    # From English: (1,0) -> row 0; (0,1) -> row 1; (1,1) -> row 2. To English: rows 0 and 2 find theirs, and row 1,
    # at 63 degrees, is nearer to (1,1) than to (0,1).
    assert found["from_english"] == pytest.approx(1.0)
    assert found["to_english"] == pytest.approx(2 / 3)
    assert found["accuracy"] == pytest.approx(5 / 6)


def test_retrieval_against_brute_force():
    rng = np.random.default_rng(0)
    english, other = rng.normal(size=(12, 4)), rng.normal(size=(12, 4))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    matrix = np.array([[cosine(a, b) for b in other] for a in english])
    found = retrieval_figures(english, other)
    assert found["from_english"] == np.mean([matrix[i].argmax() == i for i in range(12)])
    assert found["to_english"] == np.mean([matrix[:, i].argmax() == i for i in range(12)])
    assert found["aligned_cosine"] == pytest.approx(np.diag(matrix).mean())
    off = [matrix[i, j] for i in range(12) for j in range(12) if i != j]
    assert found["other_cosine"] == pytest.approx(np.mean(off))
    same = retrieval_figures(english, 3.0 * english)
    assert same["accuracy"] == 1.0 and same["aligned_cosine"] == pytest.approx(1.0)


def test_correlation_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    found = correlation(x, y, samples=500)
    assert found["r"] == pytest.approx(0.6)  # 3 / 5: the sums of products over the root of 5 * 5
    assert found["points"] == 4 and 0.0 < found["p"] < 1.0
    without = [np.corrcoef(np.delete(x, i), np.delete(y, i))[0, 1] for i in range(4)]
    assert (found["least_without_one"], found["most_without_one"]) == pytest.approx((min(without), max(without)))
    assert found["low"] <= found["r"] <= found["high"]
    assert correlation(x, y, samples=500) == found
    assert correlation(x[:3], y[:3])["r"] is None and correlation(np.ones(4), y)["r"] is None
    two = correlation(x, y, np.array([0, 0, 1, 1]))
    assert two["r"] is None and two["points"] == 4, "two models leave one, which has no interval"


def test_correlation_without_points_by_hand():
    """On the line x = y but for the last point, at (4, 0): without it r is 1, else it is lower."""
    x, y = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, 3.0, 0.0])
    leaving_out = definitions("summary_transfer").leaving_out
    everything, one, two = (leaving_out(x, y, count) for count in range(3))
    # The sums of products: 2 over the root of 10 * 6.8.
    assert everything["least"] == everything["most"] == pytest.approx(2 / np.sqrt(68)) and everything["out"] == []
    assert one["points"] == 4 and one["most"] == pytest.approx(1.0)
    # Without (0, 0): x less its mean is -1.5, -0.5, 0.5, 1.5; y -0.5, 0.5, 1.5, -1.5; the sums are -1, 5 and 5.
    assert one["least"] == pytest.approx(-0.2)
    # Without (0, 0) and (1, 1): x -1, 0, 1; y 1/3, 4/3, -5/3; the sums are -2, 2 and 14/3.
    assert two["points"] == 3 and two["least"] == pytest.approx(-2 / np.sqrt(2 * 14 / 3))
    brute = [pearsonr(np.delete(x, out), np.delete(y, out)) for out in itertools.combinations(range(5), 2)]
    assert two["p"] == pytest.approx(max(each.pvalue for each in brute))
    assert np.delete(x, two["out"]).size == 3
    assert leaving_out(x[:3], y[:3], 1)["p"] is None and leaving_out(x, np.ones(5), 1)["least"] is None


def test_spearman_is_pearson_of_ranks():
    x, y = pd.Series([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0]), pd.Series([2.0, 7.0, 1.0, 8.0, 2.5, 8.0, 1.5])
    leaving_out = definitions("summary_transfer").leaving_out
    found, known = leaving_out(x.rank().to_numpy(), y.rank().to_numpy(), 0), spearmanr(x, y)
    assert (found["least"], found["p"]) == pytest.approx((known.statistic, known.pvalue))


def test_partial_correlation_against_its_formula():
    rng = np.random.default_rng(3)
    given = rng.normal(size=11)
    x, y = given + rng.normal(size=11), given + rng.normal(size=11)
    partial_correlation = definitions("summary_transfer").partial_correlation
    found = partial_correlation(x, y, given)
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, given), (y, given)))
    assert found["r"] == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))) and found["points"] == 11
    # One degree of freedom goes to the third variable.
    alone = partial_correlation(given, 2 * given + 1, given)
    assert alone == {"points": 11, "r": None, "p": None} == partial_correlation(x, given, given)
    degrees = 11 - 3
    t = found["r"] * np.sqrt(degrees / (1 - found["r"] ** 2))
    assert found["p"] == pytest.approx(2 * t_distribution(degrees).sf(abs(t)))
    assert partial_correlation(x[:4], y[:4], given[:4])["p"] is None


def transfer_checks(table, scorer="embedded"):
    """What the summary finds of one comparison: the checks, the sentence, the verdict and the rows of the table."""
    results = SimpleNamespace(parameters=lambda *_: [scorer])
    said = definitions("summary_transfer")
    names = vars(said) | {"results": results, "transfers": {"A": (table, {})}}
    found = run_cell("summary_transfer", "transfer-checks", **names)["checked"]["A"]
    row = correlation(table["accuracy"].to_numpy(float), table["relative_drop"].to_numpy(float), samples=100)
    metrics = {"accuracy": row, "aligned_cosine": row}
    return found, said.correlated("A", row, found), said.verdict("A", row, found), said.correlation_rows(metrics, found)


def test_a_correlation_that_two_languages_carry_is_not_established():
    codes = ["ar", "de", "es", "fr", "id", "ja", "nl", "pt", "ru", "zh", "cs", "pl"]
    accuracy = [0.4, 0.5, 0.45, 0.55, 0.42, 0.52, 0.47, 0.5, 0.44, 0.49, 0.0, 0.05]
    drop = [0.5, 0.42, 0.55, 0.48, 0.43, 0.55, 0.41, 0.5, 0.52, 0.44, 0.0, 0.05]
    table = pd.DataFrame({"language": codes, "accuracy": accuracy, "relative_drop": drop})
    found, said, verdict, rows = transfer_checks(table)
    assert found["two"]["out"] == ["Czech", "Polish"] and found["two"]["points"] == 10 and found["two"]["p"] > 0.05
    assert "without Czech and Polish" in said and "Spearman's rank correlation is" in said
    assert found["partial"]["points"] == 11, "RTP-LX has no human labels in Polish"
    assert "known in 11 of these languages" in said
    assert "is not established for A: not by the correlation without two of the languages" in verdict
    assert len(rows) == 7 and all(len(row) == 4 for row in rows)


def test_a_correlation_that_stands_is_said_to_stand():
    codes = ["ar", "de", "es", "fr", "id", "ja", "nl", "pt", "ru", "zh"]
    rng = np.random.default_rng(0)
    accuracy = np.linspace(0.1, 0.9, 10)[rng.permutation(10)]
    table = pd.DataFrame(
        {"language": codes, "accuracy": accuracy, "relative_drop": accuracy / 2 + 0.01 * rng.normal(size=10)}
    )
    _, said, verdict, _ = transfer_checks(table)
    assert verdict.startswith("For A the correlation stands under each of these checks") and "partial" in said
    _, said, verdict, _ = transfer_checks(table, scorer="another")
    assert verdict.endswith("which leaves out the partial correlation.") and said.endswith("for enough of them.")
    _, said, verdict, rows = transfer_checks(table.head(3))
    assert said == "For A, no correlation is defined over 3 languages." and "is not established for A." in verdict
    assert [str(cell) for cell in rows[0][1:]] == ["3", "–", "–"]


def test_the_page_says_where_the_sentences_come_from():
    origin = definitions("summary_transfer").origin
    project = {"parameters": {"sentences": "project"}, "inputs": {"params/prompts/sentences.yaml": "0"}}
    assert "native speakers have not checked" in origin(project)
    assert origin(project | {"inputs": {}}) == "The sentences are the evaluated prompts themselves."
    assert "of the folder" in origin({"parameters": {"sentences": "folder"}, "inputs": {}})


def test_points_that_belong_together_are_drawn_together():
    """Eight points that are each there five times tell as much as eight points, and their p is not told."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=8)
    y = x + rng.normal(size=8)
    once = correlation(x, y, samples=500)
    often = correlation(np.tile(x, 5), np.tile(y, 5), np.tile(np.arange(8), 5), samples=500)
    assert often["p"] is None and often["points"] == 40
    for name in ("r", "low", "high", "least_without_one", "most_without_one"):
        assert often[name] == pytest.approx(once[name])
    loose = correlation(np.tile(x, 5), np.tile(y, 5), samples=500)
    assert loose["high"] - loose["low"] < 0.8 * (once["high"] - once["low"])


def test_the_interval_narrows_with_points():
    rng = np.random.default_rng(0)
    widths = []
    for points in (10, 200):
        x = rng.normal(size=points)
        found = correlation(x, x + rng.normal(size=points), samples=500)
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0] / 2


def test_leave_one_out_against_brute_force():
    leave_one_out = definitions("transfer").leave_one_out
    rng = np.random.default_rng(2)
    x = rng.normal(size=8)
    y = 2.0 * x + 0.1 * rng.normal(size=8)
    found = leave_one_out(x, y)
    errors, mean_errors = [], []
    for i in range(8):
        rest = [j for j in range(8) if j != i]
        design = np.column_stack([x[rest], np.ones(7)])
        slope, intercept = np.linalg.lstsq(design, y[rest], rcond=None)[0]
        assert found["predicted"][i] == pytest.approx(slope * x[i] + intercept)
        errors.append((y[i] - found["predicted"][i]) ** 2)
        mean_errors.append((y[i] - y[rest].mean()) ** 2)
    assert found["error"] == pytest.approx(np.sqrt(np.mean(errors)))
    assert found["mean_error"] == pytest.approx(np.sqrt(np.mean(mean_errors))) and found["error"] < found["mean_error"]
    assert leave_one_out(x[:3], y[:3])["predicted"] is None


def test_a_line_through_one_place_is_level():
    assert line(np.array([1.0, 1.0]), np.array([2.0, 4.0])) == (0.0, 3.0)
    assert line(np.array([0.0, 2.0]), np.array([1.0, 5.0])) == pytest.approx((2.0, 1.0))


def test_figures_of_a_transfer_without_languages_are_missing():
    space = vars(definitions("transfer")) | {"before": {}, "after": {}, "retrieved": {}}
    space |= {"table": run_cell("transfer", "transfer-drop", **space)["table"], "settings": checked("transfer")}
    found = run_cell("transfer", "transfer-correlation", **space)["metrics"]
    assert found["languages"] == 0 and found["accuracy"]["r"] is None and found["accuracy"]["predicted"] is None


def test_a_model_is_forecast_from_all_others():
    """The others lie on 0.1 + 2 x; a second variant of a model is no other model, nor is another file of its base."""

    def points(accuracy, drop):
        return pd.DataFrame({"language": ["de", "fr"], "accuracy": accuracy, "relative_drop": drop}), {}

    measured = {
        "A": points([0.1, 0.4], [0.3, 0.9]), "B": points([0.2, 0.3], [0.5, 0.7]),
        "C (DPO)": points([0.25, 0.35], [0.7, 0.7]), "C (LoRA)": points([0.25, 0.35], [0.0, 5.0]),
        "c (published)": points([0.25, 0.35], [0.0, 5.0]),
    }  # fmt: skip
    comparisons = [SimpleNamespace(title=title, model=title[0]) for title in [*measured, "D"]]
    accuracies = {"A": [0.1, 0.4], "B": [0.2, 0.3], "C": [0.25, 0.35], "D": [0.5, 0.6], "c": [0.25, 0.35]}

    def forecasts(titles):
        results = SimpleNamespace(
            comparisons=[one for one in comparisons if one.title in titles],
            by_language_of=lambda _, model: {language: {"accuracy": value}
                                             for language, value in zip(["de", "fr"], accuracies[model], strict=True)},
        )  # fmt: skip
        transfers = {title: measured[title] for title in titles if title in measured}
        given = {"bases": {name: name.upper() for name in accuracies}, "transfers": transfers, "others": ["de", "fr"]}
        return run_cell("summary_transfer", "transfer-forecast", np=np, pd=pd, line=line, results=results,
                        **given)["forecasts"].set_index("comparison")  # fmt: skip

    found = forecasts(list(measured))
    assert found.loc["C (DPO)", "points"] == 4
    assert found.loc["C (DPO)", "predicted"] == pytest.approx(0.1 + 2 * 0.3)
    assert found.loc["C (DPO)", "error"] == pytest.approx(0.1)  # 0.6 and 0.8 against 0.7
    untuned = forecasts(["A", "B", "D"])
    assert untuned.loc["D", "predicted"] == pytest.approx(0.1 + 2 * 0.55) and pd.isna(untuned.loc["D", "drop"])


# --- parallel sentences -----------------------------------------------------------------------------------------


def test_parallel_files_of_every_kind(tmp_path):
    (tmp_path / "en.txt").write_text("One.\nTwo.\n")
    (tmp_path / "de.jsonl").write_text('{"text": "Eins."}\n{"text": "Zwei."}\n')
    (tmp_path / "dpo_toxicity_pairwise_fr_200.jsonl").write_text('{"Prompt": "L&#039;un."}\n{"Prompt": "Deux."}\n')
    read = {code: parallel_sentences("folder", code, tmp_path) for code in ("en", "de", "fr")}
    assert read == {"en": ["One.", "Two."], "de": ["Eins.", "Zwei."], "fr": ["L'un.", "Deux."]}
    assert parallel_sentences("folder", "de", tmp_path, 1) == ["Eins."]
    project = {code: parallel_sentences("project", code) for code in ("en", "ja")}
    assert len(project["en"]) == len(project["ja"]) == 40 and project["en"] != project["ja"]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("de.txt", "Eins.\n\nDrei.\n", ":2: no sentence here"),
    ("de.jsonl", '{"a": 1}', "field 'Prompt' is missing"),
    ("de.jsonl", "[broken", "not valid JSON"),
    ("x_de_2.jsonl", '{"Prompt": "Eins."}\n{"words": 1}\n', ":2: field 'Prompt' is missing"),
    ("fr.txt", "Un.\n", "no file of German"),
])  # fmt: skip
def test_bad_parallel_files_are_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        parallel_sentences("folder", "de", tmp_path)


def test_a_folder_is_needed_and_one_file_a_language(tmp_path):
    with pytest.raises(UserError, match="alignment: retrieval: folder"):
        parallel_sentences("folder", "de", "")
    with pytest.raises(UserError, match="no such folder"):
        parallel_sentences("folder", "de", tmp_path / "none")
    for name in ("de.txt", "de.jsonl"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"2 files \(de.txt, de.jsonl\)"):
        parallel_sentences("folder", "de", tmp_path)
