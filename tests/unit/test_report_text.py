"""What the report says and covers: masking, tables, sentences."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from notebook_cells import definitions
from polydetox.core.errors import UserError
from polydetox.report.masking import continuation_browser, escape, masked_extremes, masked_table, masked_vectors
from polydetox.report.rendering import make_accessible
from polydetox.results.figures import SIDES, language_axis, name_lines, name_points, name_sides, use_theme
from polydetox.results.tables import (
    Cell,
    Group,
    PaperTable,
    change,
    compared,
    fixed,
    listing,
    number,
    significance,
    span,
)


def test_the_report_loads_no_model_library():
    code = "import sys; import polydetox.cli, polydetox.report; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "transformers", "datasets", "sklearn", "lm_eval"]
    assert subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True).stdout == "[]\n"


class Uncovered(HTMLParser):
    """Collects the text outside of ``<details>`` bodies, and the tags inside of them."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.inside, self._path = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if "details" in self._path and tag != "summary":
            self.inside.append((tag, dict(attributes)))
        if tag not in ("br", "img"):
            self._path.append(tag)

    def handle_endtag(self, tag):
        while self._path and self._path.pop() != tag:
            pass

    def handle_data(self, data):
        if "details" not in self._path or "summary" in self._path:
            self.text += data


def rows(**changes) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": ["p7"],
            "sample": [2],
            "prompt": ["SECRET one"],
            "continuation": ["SECRET two"],
            "toxicity": [0.834],
        }
        | changes
    )


def test_the_cover_tells_language_prompt_and_toxicity_but_no_text():
    html = masked_table(rows(), language="de")._repr_html_()
    seen = Uncovered(html).text
    assert "SECRET" in html and "SECRET" not in seen
    assert "German" in seen and "prompt p7, continuation 3" in seen and "toxicity 0.83" in seen


def test_texts_carry_their_language_and_direction():
    table = rows(gloss=["SECRET three"], language=["ar"])
    words = [
        attributes for tag, attributes in Uncovered(masked_table(table)._repr_html_()).inside if "lang" in attributes
    ]
    assert [(word["lang"], word["dir"]) for word in words] == [("ar", "rtl"), ("en", "ltr"), ("ar", "rtl")]


@pytest.mark.parametrize(
    "hostile",
    [
        "</details><b>out</b>",
        "<script>x</script>",
        "```\n:::",
        "{{< var x >}}",
        "@fig-x",
        "$x$",
        "a\u2028b",
        "\x00\x1b[31m",
    ],
)
def test_no_text_gets_out_of_its_cover(hostile):
    html = masked_table(rows(continuation=[f"SECRET{hostile}SECRET"]), language="en")._repr_html_()
    parsed = Uncovered(html)
    assert "SECRET" not in parsed.text and "out" not in parsed.text
    assert {tag for tag, _ in parsed.inside} <= {"div", "span", "br", "i"}
    assert not re.search(r"[`{}@$\x00\x1b]", html.split("<summary>")[1])
    assert all("\n" not in entry for entry in re.findall(r"<details.*?</details>", html))


def test_escape_keeps_what_a_reader_sees():
    assert escape("a < b & `c`\nd") == "a &lt; b &amp; &#96;c&#96;<br>d"


def test_other_formats_withhold_the_text():
    table = masked_table(pd.concat([rows(), rows()]), language="en")
    bundle = table._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/markdown", "text/latex", "text/plain"}
    for mime in ("text/markdown", "text/latex", "text/plain"):
        assert "SECRET" not in bundle[mime] and "2 texts withheld" in bundle[mime]


def test_pairs_and_comparisons_are_covered_as_well():
    pairs = pd.DataFrame({"prompt": ["SECRET"], "chosen": ["SECRET a"], "rejected": ["SECRET b"],
                          "chosen_toxicity": [0.1], "rejected_toxicity": [float("nan")]})  # fmt: skip
    seen = Uncovered(masked_table(pairs, language="en")._repr_html_()).text
    assert "SECRET" not in seen and "toxicity of the chosen 0.10, of the rejected not scored" in seen
    both = pd.DataFrame({"before": ["SECRET"], "after": [""], "before_toxicity": [0.9], "after_toxicity": [0.1]})
    html = masked_table(both, language="ja")._repr_html_()
    assert "toxicity before 0.90, after 0.10" in Uncovered(html).text and "(empty)" in html


def test_the_data_of_the_browser_say_what_the_pairs_say_and_stay_in_their_script():
    hostile = 'a </script><!-- ``` {{< var x >}} @fig-x $y$ \u2028 \\ " & b'
    pairs = pd.DataFrame({
        "comparison": None, "language": ["ar", "ar", "de"], "prompt_id": ["p1", "p1", "p1"], "prompt": [hostile] * 3,
        "gloss": None, "sample": [0, 1, 0], "before": ["x", hostile, ""], "after": ["y", None, "z"],
        "before_toxicity": [0.25, 0.5, float("nan")], "after_toxicity": [0.125, 0.0, 1.0], "threshold": 0.5,
    })  # fmt: skip
    html = continuation_browser(pairs)._repr_html_()
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert not re.search(r"[`{}@$<>&\u2028\n]", text) and html.count("</script>") == 1
    assert json.loads(text) == [
        [["ar", "Arabic", True], ["de", "German", False]],
        [["ar", "p1", hostile, "", 0.5], ["de", "p1", hostile, "", 0.5]],
        [["", 0, 0, "x", "y", 0.25, 0.125], ["", 0, 1, hostile, "", 0.5, 0.0], ["", 1, 0, "", "z", None, 1.0]],
    ]


def test_tables_of_a_site_get_captions_and_headings(tmp_path):
    (tmp_path / "skip.html").write_text("<a href='#main'>Skip</a>")
    table = PaperTable(["", "A", "B"], [Group("all", [["x", Cell("1"), Cell("2")]])] * 2, [("", 1), ("both", 2)])
    figure = '<figure><figcaption id="c">{}</figcaption><div>{}</div></figure>'
    (tmp_path / "site").mkdir()
    page = tmp_path / "site" / "a.html"
    page.write_text("<body class='b'><figure><img><figcaption>Figure 1</figcaption></figure>"
                    f"{figure.format('Table 1', table._repr_html_())}"
                    "<figure><img><figcaption>Figure 2</figcaption></figure>"
                    "<table><tbody><tr><td></td></tr><tr><td></td><td>x</td></tr></tbody></table>"
                    "</body>")  # fmt: skip
    make_accessible(tmp_path / "site", tmp_path)
    text = page.read_text()
    assert text.startswith("<body class='b'><a href='#main'>Skip</a><figure><img>")
    assert '<figure><div><table class="paper-table table"><caption id="c">Table 1</caption>' in text
    assert all(f"<figcaption>Figure {number}</figcaption>" in text for number in (1, 2))
    scopes = re.findall(r'<th scope="(\w+)"', text)
    assert scopes == ["colgroup", "col", "col", *["rowgroup", "row"] * 2] and text.count("<th ") == 7
    assert "<tr><td></td><td>x</td></tr>" in text, "an empty cell is no heading, and takes none of the next"
    assert text.count("<tbody>") == 3, "a body for each group, and that of the other table"


def test_figures_keep_their_text_and_have_no_background(tmp_path):
    with plt.rc_context():
        use_theme.__wrapped__()
        figure, axis = plt.subplots()
        axis.set_title("A title")
        figure.savefig(tmp_path / "figure.svg")
        plt.close(figure)
    text = (tmp_path / "figure.svg").read_text()
    assert ">A title</text>" in text and "DejaVu Sans" in text and "Verdana" in text
    assert not re.search(r"fill: #ffffff|fill: white", text)


def boxes(axis):
    axis.figure.canvas.draw()
    return {text.get_text(): text.get_window_extent() for text in axis.texts}


def test_the_names_of_lines_that_end_together_stand_apart():
    _, axis = plt.subplots()
    for name, end in (("a", 1.0), ("b", 1.01), ("c", 0.99), ("far", 3.0)):
        axis.plot([0, 1], [0, end], label=name)
    axis.plot([0, 1], [0, 2])  # without a label
    name_lines([axis])
    found = boxes(axis)
    assert sorted(found, key=lambda name: found[name].y0) == ["c", "a", "b", "far"]
    ordered = [found[name] for name in ("c", "a", "b", "far")]
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(ordered))
    far = axis.transData.transform((1, 3.0))[1]
    assert found["far"].y0 < far < found["far"].y1, "at its line's end"
    assert [text.get_color() for text in axis.texts] != [axis.texts[0].get_color()] * 4
    plt.close("all")


def test_the_names_of_points_that_lie_together_do_not_collide():
    _, axis = plt.subplots(figsize=(5, 4))
    x, y = (
        np.array([0.5, 0.5, 0.51, 0.52, 0.5, 0.49, 0.9, 0.1]),
        np.array([0.5, 0.51, 0.5, 0.52, 0.53, 0.49, 0.9, 0.1]),
    )
    axis.plot(x, y, "o")
    names = [f"Language {number}" for number in range(len(x))]
    name_points(axis, names, x, y)
    axis.figure.canvas.draw()
    found = [plt.Text.get_window_extent(text) for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == names
    assert not any(one.overlaps(two) for one, two in itertools.combinations(found, 2))
    plt.close("all")


def test_the_name_of_a_point_does_not_touch_the_marker_of_another():
    def box_of_lower(points):
        figure = plt.figure(figsize=(5, 4), dpi=100, layout="none")
        axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        name_points(axis, ["lower", "upper"][: len(points)], *axis.transData.inverted().transform(points).T)
        figure.canvas.draw()
        box = plt.Text.get_window_extent(axis.texts[0])
        plt.close(figure)
        return box

    alone = box_of_lower([[100.0, 100.0]])
    other = [(alone.x0 + alone.x1) / 2, alone.y1 + 2.0]  # its centre is above that name, its lower edge is not
    assert not box_of_lower([[100.0, 100.0], other]).padded(4.0).contains(*other)


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.2), (0.2, 0.8)])
def test_before_and_after_are_named_at_the_first_row(before, after):
    _, axis = plt.subplots()
    axis.set(xlim=(0, 1), ylim=(1.4, -0.6))
    name_sides(axis, pd.DataFrame({"before": [before, 0.5], "after": [after, 0.5]}))
    found = boxes(axis)
    assert not found["before"].overlaps(found["after"])
    assert {text.get_text(): text.get_color() for text in axis.texts} == {side: SIDES[side][0] for side in SIDES}
    name_sides(axis, pd.DataFrame({"before": [float("nan")], "after": [after]}))
    assert len(axis.texts) == 2
    plt.close("all")


def test_value_vectors_show_facts_and_cover_tokens():
    vectors = pd.DataFrame({"layer": [3], "neuron": [7], "cosine": [0.25], "activation": [-0.125],
                            "tokens": [["SECRET", "`</details>", " "]], "scripts": ["Latin 67%, Han 33%"]})  # fmt: skip
    table = masked_vectors(vectors)
    html = table._repr_html_()
    seen = Uncovered(html).text
    assert "SECRET" in html and "SECRET" not in seen
    assert all(fact in seen for fact in ("4", "7", "0.250", "\N{MINUS SIGN}0.125", "Latin 67%, Han 33%", "3 tokens"))
    assert "Model" not in seen
    assert "\n\n" not in html and "`" not in html, "it would leave its raw block"
    assert "1 text withheld" in table._repr_mimebundle_()["text/latex"]
    assert "Tiny" in Uncovered(masked_vectors(vectors.assign(model="Tiny"))._repr_html_()).text


def test_a_table_without_texts_or_language_is_refused():
    with pytest.raises(UserError, match="no text to show"):
        masked_table(pd.DataFrame({"a": [1]}), language="en")
    with pytest.raises(UserError, match="which language"):
        masked_table(rows())
    with pytest.raises(UserError, match="unknown language"):
        masked_table(rows(), language="xx")


# --- tables and numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(0.126, 2, "0.13"), (-0.5, 1, "−0.5"), (-0.001, 2, "0.00"), (12345.6, 0, "12,346")]
)
def test_fixed(value, digits, text):
    assert fixed(value, digits) == text


def test_what_was_not_run_is_no_number():
    assert number(float("nan"), 2) == Cell("not run") == number(None, 2, 0.1, 0.2)
    assert number(0.5, 2, 0.4, 0.6) == Cell("0.50", "0.40 to 0.60")
    assert number(0.5, 2, float("nan"), float("nan")) == Cell("0.50")


def test_a_table_escapes_its_cells_and_marks_its_numbers():
    table = PaperTable(["", "A", "B"], [Group("all <of> it", [["x & y", Cell("1", "0 to 2"), Cell("not run")]])],
                       [("", 1), ("both", 2)])  # fmt: skip
    html = table._repr_html_()
    assert "all &lt;of&gt; it" in html and "x &amp; y" in html
    assert '<td class="number">1<br><span class="interval">0 to 2</span></td>' in html
    assert '<td class="number missing">not run</td>' in html
    assert html.count("<th") - html.count("<thead") == 6 and 'colspan="2"' in html
    assert "not run" in repr(table)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 5 min")]
)
def test_duration(seconds, text):
    assert definitions("summary_run").duration(seconds) == text


def test_extremes_are_the_least_and_the_most_toxic():
    scores = pd.concat(
        [rows(continuation=[f"text {score}"], toxicity=[score]) for score in (0.4, 0.1, float("nan"), 0.9)]
    )
    html = masked_extremes(scores, "de")._repr_html_()
    assert "text 0.1" in html and "text 0.9" in html and "text 0.4" not in html and "text nan" not in html
    assert html.index("text 0.1") < html.index("text 0.9")
    assert "text" not in Uncovered(masked_extremes(scores.head(0), "de")._repr_html_()).text


# --- sentences --------------------------------------------------------------------------------------------------


def difference(before, after, low, high) -> pd.Series:
    return pd.Series({"before": before, "after": after, "drop": before - after, "drop_low": low, "drop_high": high})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (difference(0.8, 0.2, 0.5, 0.7), "falls from 0.80 to 0.20 (by 0.60 [0.50, 0.70])"),
        (difference(0.2, 0.8, -0.7, -0.5), "rises from 0.20 to 0.80 (by 0.60 [0.50, 0.70])"),
        (difference(0.5, 0.4, -0.1, 0.3), "shows no detectable change (0.50 to 0.40, −0.10 [−0.30, 0.10])"),
        (difference(0.3, 0.05, float("nan"), float("nan")), "goes from 0.30 to 0.05 (interval not defined)"),
        (difference(float("nan"), 0.4, -0.1, 0.3), "was not measured on both sides"),
    ],
)  # fmt: skip
def test_the_interval_decides_the_verb(row, said):
    assert change(row, 2) == said


def test_listing():
    assert [listing(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none", "a", "a and b", "a, b and c",
    ]  # fmt: skip


def test_a_difference_is_told_as_its_interval_allows():
    assert compared(0.1, 0.05, 0.15, 2) == "higher (0.10 [0.05, 0.15])"
    assert compared(-0.1, -0.15, -0.05, 2) == "lower (−0.10 [−0.15, −0.05])"
    assert compared(-0.02, -0.04, -0.002, 2) == "lower (−0.020 [−0.040, −0.002])", "a bound that is below zero"
    assert compared(0.1, -0.5, 0.7, 1) == "not detectably different (0.1 [−0.5, 0.7])"
    assert compared(float("nan"), 0.0, 0.0, 1) == "not measured"
    assert compared(0.1, float("nan"), float("nan"), 1) == "not known to differ (0.1, interval not defined)"


def test_a_range_names_its_languages():
    assert span(pd.Series({"de": 0.75, "en": 0.91, "fr": 0.8}), 2) == "0.75 (German) to 0.91 (English)"
    assert span(pd.Series({}, dtype=float), 2) == "not measured"


def test_a_small_p_is_not_printed_as_zero():
    assert (significance(0.00004), significance(0.0123)) == ("p < 0.001", "p = 0.012")


def test_english_alone_is_in_bold_also_once_languages_are_sorted():
    figure, axis = plt.subplots()
    for order in (["de", "en", "ja"], ["ja", "de", "en"]):
        language_axis(axis, order)
        weights = {label.get_text(): label.get_fontweight() for label in axis.get_yticklabels()}
        assert weights == {"German": "normal", "English": "bold", "Japanese": "normal"}
    plt.close(figure)
