"""Text that may be offensive, covered until the reader asks for it.

Every prompt and continuation that a notebook shows goes through :func:`masked_table`: in HTML a ``<details>`` whose
summary tells the language and the toxicity and whose body holds the text; in every other format a sentence that says
how many texts were withheld. No cover needs a script, so that it also holds where scripts are off.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES, check_language
from polydetox.results.tables import NOT_APPLICABLE, fixed

WARNING_TITLE = "Content warning"
WARNING = (
    "This page holds prompts and model continuations that insult, threaten or otherwise offend. "
    "Each is covered until you open it."
)

# Classes of the HTML: a cover, what is under it, and each text there.
COVER, BODY, WORDS = "masked", "masked-body", "masked-words"

RIGHT_TO_LEFT = frozenset({"ar"})

# Columns that hold text, in reading order, with their heading; the gloss is in English, the rest in the language.
_PASSAGES = {
    "prompt": "prompt",
    "gloss": "prompt in English",
    "continuation": "continuation",
    "before": "before",
    "after": "after",
    "chosen": "chosen",
    "rejected": "rejected",
}

# Columns that hold a toxicity, with what the summary calls it.
_SCORES = {
    "toxicity": "toxicity",
    "before_toxicity": "toxicity before",
    "after_toxicity": "after",
    "chosen_toxicity": "toxicity of the chosen",
    "rejected_toxicity": "of the rejected",
}

# A raw block of Markdown ends at a run of backticks, a shortcode begins with braces, a citation with @: written as
# entities, no text can leave its cover.
_ENTITIES = str.maketrans({"`": "&#96;", "{": "&#123;", "}": "&#125;", "@": "&#64;", "$": "&#36;", "\n": "<br>"})


def escape(text: str) -> str:
    """A text as HTML on one line, with nothing in it that HTML or Markdown could take for markup."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    printable = "".join(
        character for character in lines if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )
    return html.escape(printable).translate(_ENTITIES)


@dataclass(frozen=True)
class Passage:
    """One text with its heading and language."""

    heading: str
    text: str
    language: str

    def to_html(self) -> str:
        direction = "rtl" if self.language in RIGHT_TO_LEFT else "ltr"
        body = escape(self.text) if self.text.strip() else "<i>(empty)</i>"
        return (
            f'<div class="masked-passage"><span class="masked-heading">{html.escape(self.heading)}</span> '
            f'<span class="{WORDS}" lang="{self.language}" dir="{direction}">{body}</span></div>'
        )


@dataclass(frozen=True)
class Masked:
    """Passages behind one cover, and what the cover says."""

    summary: tuple[str, ...]
    passages: tuple[Passage, ...]

    def to_html(self) -> str:
        said = " ".join(f"<span>{html.escape(part)}</span>" for part in self.summary)
        body = "".join(passage.to_html() for passage in self.passages)
        return f'<details class="{COVER}"><summary>{said}</summary><div class="{BODY}">{body}</div></details>'


class MaskedTable:
    """What :func:`masked_table` returns: it shows itself in HTML and withholds the text everywhere else."""

    def __init__(self, entries: list[Masked]):
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        texts = f"{len(self)} text" + ("" if len(self) == 1 else "s")
        return f"[{texts} withheld, which may be offensive; the HTML report shows them on request]"

    def _repr_html_(self) -> str:
        covered = "\n".join(entry.to_html() for entry in self.entries)
        return f'<div class="masked-list">\n{covered}\n</div>'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # Formats without HTML prefer Markdown to anything else, so the fallback is given in both.
        return {
            "text/html": self._repr_html_(),
            "text/markdown": rf"*{repr(self)[1:-1]}*",
            "text/latex": rf"\emph{{{repr(self)[1:-1]}}}",
            "text/plain": repr(self),
        }


def masked_table(table: pd.DataFrame, language: str | None = None) -> MaskedTable:
    """Cover the texts of a table, one cover a row.

    Text columns are those of ``prompt, gloss, continuation, before, after, chosen, rejected`` that the table has;
    the summary names the language (``language``, or the column ``language``), the prompt's id, the number of the
    sample, and every toxicity column. A ``UserError`` where the table has no text column or no language.
    """
    columns = [column for column in _PASSAGES if column in table.columns]
    if not columns:
        raise UserError(f"masked_table: no text to show; the table needs one of the columns {', '.join(_PASSAGES)}")
    if language is None and "language" not in table.columns:
        raise UserError("masked_table: say which language the texts are in: language='de', or a column 'language'")
    return MaskedTable([_mask(row, columns, language) for row in table.to_dict("records")])


# Adds what needs a script to tables that are whole without one: headings that sort, and a field that filters rows by
# their words, those under a cover included (it shows which rows hold a word, not the words). A blank line or a backtick
# would end the raw block that it stands in.
_EXPLORE = """<script>
document.querySelectorAll('.explorable:not([data-ready])').forEach(box => {
  box.dataset.ready = '';
  const body = box.querySelector('tbody'), rows = [...body.rows], heads = [...box.querySelectorAll('th')];
  const value = (row, column) => row.cells[column].dataset.value;
  heads.forEach((head, column) => {
    if (head.dataset.sorts === undefined) return;
    const button = document.createElement('button');
    button.type = 'button'; button.textContent = head.textContent; head.replaceChildren(button);
    button.onclick = () => {
      const down = head.ariaSort !== 'descending', sign = down ? -1 : 1;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.ariaSort = down ? 'descending' : 'ascending';
      const text = isNaN(value(rows[0], column));
      rows.sort((a, b) => { const x = value(a, column), y = value(b, column);
        return sign * (text ? x.localeCompare(y) : x - y); });
      body.append(...rows);
    };
  });
  const field = document.createElement('input');
  field.type = 'search'; field.placeholder = 'layer, script or token'; field.ariaLabel = 'show rows with these words';
  field.oninput = () => { const words = field.value.toLowerCase().split(' ').filter(Boolean);
    rows.forEach(row => { const said = row.textContent.toLowerCase();
      row.hidden = !words.every(word => said.includes(word)); }); };
  box.prepend(field);
});
</script>"""


class MaskedVectors(MaskedTable):
    """What :func:`masked_vectors` returns: a table of facts, with the tokens of each row under a cover."""

    def __init__(
        self, headings: Sequence[str], rows: Sequence[Sequence[tuple[str, float | str]]], tokens: list[Masked]
    ):
        super().__init__(tokens)
        self.headings, self.rows = headings, rows

    def _repr_html_(self) -> str:
        head = "".join(f"<th data-sorts>{html.escape(heading)}</th>" for heading in self.headings)
        body = []
        for facts, tokens in zip(self.rows, self.entries, strict=True):
            cells = "".join(f'<td data-value="{escape(str(value))}">{escape(said)}</td>' for said, value in facts)
            body.append(f"<tr>{cells}<td>{tokens.to_html()}</td></tr>")
        rows = "\n".join(body)
        return (
            f'<div class="explorable">\n<table class="paper-table table">\n<thead>\n<tr>{head}<th>Promoted tokens</th>'
            f"</tr>\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n{_EXPLORE}\n</div>"
        )


def masked_vectors(table: pd.DataFrame) -> MaskedVectors:
    """Value vectors as a table that a reader can sort and filter, the tokens that each promotes under a cover.

    ``table`` has the columns ``layer, neuron, cosine, activation, tokens, scripts``, and ``model`` where there are
    several.
    """
    several = "model" in table.columns and table["model"].notna().any()
    headings = [*(["Model"] if several else []), "Layer", "Neuron", "Cosine", "Mean activation", "Scripts"]
    rows, covered = [], []
    for row in table.to_dict("records"):
        named = [(str(row["model"]), str(row["model"]))] if several else []
        numbers = [(str(row["layer"] + 1), row["layer"] + 1), (str(row["neuron"]), row["neuron"])]
        measured = [(fixed(row[name], 3), float(row[name])) for name in ("cosine", "activation")]
        rows.append([*named, *numbers, *measured, (row["scripts"] or NOT_APPLICABLE, len(row["scripts"].split(", ")))])
        tokens = Passage("promoted", "  ".join(token.strip() or "␣" for token in row["tokens"]), "und")
        covered.append(Masked((f"{len(row['tokens'])} tokens",), (tokens,)))
    return MaskedVectors(headings, rows, covered)


def masked_extremes(scores: pd.DataFrame, language: str) -> MaskedTable:
    """Cover the least and the most toxic of some scored continuations of one language; none where none is scored."""
    ranked = scores.dropna(subset=["toxicity"]).sort_values("toxicity")
    return masked_table(ranked.iloc[[0, -1]] if len(ranked) else ranked, language)


def masked_documents(title: str, texts: Sequence[str]) -> MaskedTable:
    """Cover some texts of no one language with one cover, which says ``title``."""
    passages = tuple(Passage(str(number), text, "und") for number, text in enumerate(texts, start=1))
    return MaskedTable([Masked((title,), passages)])


def _mask(row: Mapping[str, Any], columns: list[str], language: str | None) -> Masked:
    code = check_language(str(row["language"]) if language is None else language)
    passages = []
    for column in columns:
        if column == "gloss" and (code == "en" or not isinstance(row[column], str)):
            continue
        text = row[column] if isinstance(row[column], str) else ""
        passages.append(Passage(_PASSAGES[column], text, "en" if column == "gloss" else code))
    return Masked((LANGUAGES[code], *_facts(row)), tuple(passages))


def _facts(row: Mapping[str, Any]) -> list[str]:
    """What the summary says beside the language: nothing of the text."""
    facts = [row["comparison"]] if isinstance(row.get("comparison"), str) else []
    if "prompt_id" in row:
        sample = f", continuation {row['sample'] + 1}" if "sample" in row else ""
        facts.append(f"prompt {row['prompt_id']}{sample}")
    scores = [
        f"{said} {row[column]:.2f}" if pd.notna(row[column]) else f"{said} not scored"
        for column, said in _SCORES.items()
        if column in row
    ]
    if scores:
        facts.append(", ".join(scores))
    return facts
