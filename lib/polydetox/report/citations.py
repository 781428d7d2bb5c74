"""Citations for the preview renderer: author and year in the text, pybtex's plain style in the bibliography."""

from __future__ import annotations

from pathlib import Path

from pybtex.backends.html import Backend
from pybtex.database import BibliographyData, Entry, parse_file
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style

from polydetox.core.errors import UserError

_MANY = 3  # more authors than these are "et al."


class Bibliography:
    """A BibTeX file, and which of its entries were cited."""

    def __init__(self, file: Path):
        try:
            self._data = parse_file(str(file), bib_format="bibtex") if file.is_file() else BibliographyData()
        except PybtexError as error:
            raise UserError(f"{file.name}: not valid BibTeX: {str(error).splitlines()[0]}") from None
        self._cited: set[str] = set()
        # Two entries of the same authors and year are told apart as a, b ...
        groups: dict[tuple[str, str], list[str]] = {}
        for key, entry in self._data.entries.items():
            groups.setdefault((_names(entry), entry.fields.get("year", "n.d.")), []).append(key)
        for (_, year), keys in groups.items():
            for letter, key in zip("abcdefghijklmnopqrstuvwxyz", sorted(keys), strict=False):
                self._data.entries[key].fields["year"] = year + (letter if len(keys) > 1 else "")

    def cite(self, key: str) -> tuple[str, str]:
        """The authors and the year of an entry, which is then in the list."""
        self._cited.add(key)
        entry = self._data.entries[key]
        return _names(entry), entry.fields["year"]

    def to_html(self) -> str:
        """The entries that were cited, by author and year, each with the anchor ``ref-<key>``."""
        style = Style(name_style="lastfirst", abbreviate_names=False)
        entries = {entry.key: entry.text.render(Backend("utf-8"))
                   for entry in style.format_bibliography(self._data, sorted(self._cited))}  # fmt: skip
        items = "\n".join(f'<div id="ref-{key}" class="csl-entry">{text}</div>' for key, text in entries.items())
        return f'<div id="refs" class="references csl-bib-body">\n{items}\n</div>'


def _names(entry: Entry) -> str:
    """The authors as the text names them, or the title where there are none."""
    people = entry.persons.get("author", [])
    names = [_text(" ".join([*person.prelast_names, *person.last_names])) for person in people]
    if len(names) > _MANY or "others" in names:
        return f"{names[0]} et al."
    if len(names) == 3:
        return f"{names[0]}, {names[1]}, and {names[2]}"
    return " and ".join(names) or _text(entry.fields.get("title", ""))


def _text(latex: str) -> str:
    return str(Text.from_latex(latex))
