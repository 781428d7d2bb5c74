"""Multiway parallel sentences, line by line translations of one another."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from pydantic import AliasChoices, Field

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.prompts import parallel_translations
from polydetox.data.rows import Row, Text, check_rows, read_rows


class Sentence(Row, title="a file of parallel sentences"):
    text: Text = Field(validation_alias=AliasChoices("Prompt", "text"))


def parallel_sentences(source: str, language: str, folder: str | Path = "", limit: int | None = None) -> list[str]:
    """Multiway parallel sentences in one language, in the order that all languages share.

    ``source`` is ``project`` (written for it, and not evaluated) or ``folder``: one with a file of each language,
    ``de.txt`` (a line a sentence), ``de.jsonl`` or ``*_de_*.jsonl`` (``Prompt`` or ``text``, as the authors publish).
    """
    if source == "project":
        return parallel_translations(language)[:limit]
    if not str(folder):
        raise UserError("parallel sentences: set 'alignment: retrieval: folder:' in the profile or -p folder "
                        "(see `polydetox data`)")  # fmt: skip
    place = local_path(folder)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; it should hold one file of parallel sentences a language")
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
