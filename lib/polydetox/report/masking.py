"""Text that may be offensive, covered until the reader asks for it, without a script.

In HTML it is a ``<details>`` whose summary tells the language and the toxicity; in every other format a sentence says
how many texts were withheld.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES, check_language
from polydetox.results.tables import NOT_APPLICABLE, fixed, html_table

WARNING = """::: {.callout-warning title="Content warning"}
This page holds prompts and model continuations that insult, threaten or otherwise offend. Each is covered until you
open it.
:::"""

# Classes of the HTML: a cover, what is under it, and each text there.
COVER, BODY, WORDS = "masked", "masked-body", "masked-words"

SEARCH_INDEX = "search.json"

RIGHT_TO_LEFT = frozenset({"ar"})

# Columns that hold text, in reading order, with their heading; the gloss is in English, the rest in the language.
_TEXTS = {
    "prompt": "prompt", "gloss": "prompt in English", "continuation": "continuation",
    "before": "before", "after": "after", "chosen": "chosen", "rejected": "rejected",
}  # fmt: skip

TEXTS = frozenset({*_TEXTS, "tokens"})

# Columns that hold a toxicity, with what the summary calls it.
_SCORES = {
    "toxicity": "toxicity", "before_toxicity": "toxicity before", "after_toxicity": "after",
    "chosen_toxicity": "toxicity of the chosen", "rejected_toxicity": "of the rejected",
}  # fmt: skip

# A raw block of Markdown ends at a run of backticks, a shortcode begins with braces, a citation with @: written as
# entities, no text can leave its cover.
_ENTITIES = str.maketrans({"`": "&#96;", "{": "&#123;", "}": "&#125;", "@": "&#64;", "$": "&#36;", "\n": "<br>"})
_IN_JSON = {ord(sign): f"\\u{ord(sign):04x}" for sign in "`{}@$<>&\u2028\u2029"}  # the same within a script


def escape(text: str) -> str:
    """A text as HTML on one line, with nothing in it that HTML or Markdown could take for markup."""
    lines = re.sub("\r\n|[\r\u2028\u2029]", "\n", text)
    printable = "".join(
        character for character in lines if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
    )
    return html.escape(printable).translate(_ENTITIES)


def passage(heading: str, text: str, language: str) -> str:
    """One text with its heading, as it stands under a cover."""
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    words = escape(text) if text.strip() else "<i>(empty)</i>"
    return (
        f'<div class="masked-passage"><span class="masked-heading">{html.escape(heading)}</span> '
        f'<span class="{WORDS}" lang="{language}" dir="{direction}">{words}</span></div>'
    )


def cover(summary: Iterable[str], passages: Iterable[str]) -> str:
    """Passages behind one cover, which says the summary."""
    said = " ".join(f"<span>{html.escape(part)}</span>" for part in summary)
    return f'<details class="{COVER}"><summary>{said}</summary><div class="{BODY}">{"".join(passages)}</div></details>'


class Masked:
    """HTML with covered texts, which every other format withholds."""

    def __init__(self, shown: str, texts: int):
        self._shown, self._texts = shown, texts

    def __repr__(self) -> str:
        texts = f"{self._texts} text" + ("" if self._texts == 1 else "s")
        return f"[{texts} withheld, which may be offensive; the HTML report shows them on request]"

    def _repr_html_(self) -> str:
        return self._shown

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        # Formats without HTML prefer Markdown to anything else, so the fallback is given in both.
        said = repr(self)
        return {
            "text/html": self._shown,
            "text/markdown": f"*{said[1:-1]}*",
            "text/latex": rf"\emph{{{said[1:-1]}}}",
            "text/plain": said,
        }


def _listed(covers: Sequence[str]) -> Masked:
    return Masked('<div class="masked-list">\n{}\n</div>'.format("\n".join(covers)), len(covers))


def masked_table(table: pd.DataFrame, language: str | None = None) -> Masked:
    """Cover the texts of a table, one cover a row, whose summary names language, prompt, sample and toxicity."""
    columns = [column for column in _TEXTS if column in table.columns]
    if not columns:
        raise UserError(f"masked_table: no text to show; the table needs one of the columns {', '.join(_TEXTS)}")
    if language is None and "language" not in table.columns:
        raise UserError("masked_table: say which language the texts are in: language='de', or a column 'language'")
    covers = []
    for row in table.to_dict("records"):
        code = check_language(language or str(row["language"]))
        texts = {column: row[column] if isinstance(row[column], str) else "" for column in columns}
        if code == "en" or not texts.get("gloss"):
            texts.pop("gloss", None)
        passages = [passage(_TEXTS[column], text, "en" if column == "gloss" else code)
                    for column, text in texts.items()]  # fmt: skip
        covers.append(cover([LANGUAGES[code], *_facts(row)], passages))
    return _listed(covers)


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
    return [*facts, ", ".join(scores)] if scores else facts


def continuation_browser(pairs: pd.DataFrame) -> Masked:
    """Pairs of continuations as data for the browser of ``book/scripts.html``; a page without scripts shows none.

    ``pairs`` has ``comparison, language, prompt_id, prompt, gloss, sample, before, after``, the two toxicities and the
    ``threshold`` of a toxic text.
    """
    about, sides = ["language", "prompt_id", "prompt", "gloss", "threshold"], ["before", "after"]
    pairs = pairs.fillna(dict.fromkeys(["comparison", "prompt", "gloss", *sides], ""))
    pairs["of"] = pairs.groupby(about, sort=False).ngroup()
    languages = [[code, LANGUAGES[code], code in RIGHT_TO_LEFT] for code in pairs["language"].unique()]
    rows = pairs[["comparison", "of", "sample", *sides, *(f"{side}_toxicity" for side in sides)]]
    parts = [part.to_json(orient="values", force_ascii=False)
             for part in (pd.DataFrame(languages), pairs[about].drop_duplicates(), rows)]  # fmt: skip
    text = f"[{','.join(parts)}]".translate(_IN_JSON)
    kept = f'<script type="application/json">{text}</script>'
    return Masked(f'<div class="continuations"><div class="{BODY}" hidden>{kept}</div></div>', 2 * len(pairs))


def masked_extremes(scores: pd.DataFrame, language: str) -> Masked:
    """Cover the least and the most toxic of some scored continuations of one language; none where none is scored."""
    ranked = scores.dropna(subset=["toxicity"]).sort_values("toxicity")
    return masked_table(ranked.iloc[[0, -1]] if len(ranked) else ranked, language)


def masked_documents(title: str, texts: Sequence[str]) -> Masked:
    """Cover some texts of no one language with one cover, which says ``title``."""
    return _listed([cover([title], [passage(str(number), text, "und") for number, text in enumerate(texts, start=1)])])


def masked_vectors(table: pd.DataFrame) -> Masked:
    """Value vectors (``layer, neuron, cosine, activation, tokens, scripts, model``), their tokens covered."""
    shown = pd.DataFrame({
        "Model": table.get("model"),
        "Layer": table["layer"] + 1,
        "Neuron": table["neuron"],
        "Cosine": [fixed(value, 3) for value in table["cosine"]],
        "Mean activation": [fixed(value, 3) for value in table["activation"]],
        "Scripts": [scripts or NOT_APPLICABLE for scripts in table["scripts"]],
    }).dropna(axis="columns", how="all").map(lambda value: escape(str(value)))  # fmt: skip
    texts = ["  ".join(token.strip() or "␣" for token in tokens) for tokens in table["tokens"]]
    shown["Promoted tokens"] = [cover([f"{len(tokens)} tokens"], [passage("promoted", text, "und")])
                                for tokens, text in zip(table["tokens"], texts, strict=True)]  # fmt: skip
    return Masked(f'<div class="explorable">\n{html_table(shown)}\n</div>', len(table))


def uncover_nothing(site: Path) -> None:
    """Take the text of every page that covers something out of a site's search index, but for its headings.

    Quarto indexes whole pages, and a search result shows its surroundings: a word of a covered text would uncover it.
    """
    file = site / SEARCH_INDEX
    if file.is_file():
        entries = json.loads(file.read_text("utf-8"))
        pages = {entry["href"].split("#")[0] for entry in entries}  # of which each has an entry a heading
        covering = {page for page in pages if f'class="{BODY}"' in (site / page).read_text("utf-8")}
        for entry in entries:
            if entry["href"].split("#")[0] in covering:
                entry["text"] = ""
        file.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
