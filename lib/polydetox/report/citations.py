"""Citations for the preview renderer: author and year in the text, pybtex's plain style in the bibliography."""

from __future__ import annotations

from pathlib import Path

from pybtex.backends.html import Backend
from pybtex.database import BibliographyData, parse_file
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style

from polydetox.core.errors import UserError


class Bibliography:
    """A BibTeX file, and which of its entries were cited."""

    def __init__(self, file: Path):
        try:
            self._data = parse_file(str(file), bib_format="bibtex") if file.is_file() else BibliographyData()
        except PybtexError as error:
            raise UserError(f"{file.name}: not valid BibTeX: {str(error).splitlines()[0]}") from None
        self._cited: set[str] = set()

    def cite(self, key: str) -> tuple[str, str]:
        """The authors and the year of an entry as the text names them; it is in the list from then on."""
        self._cited.add(key)
        entry = self._data.entries[key]
        people = entry.persons.get("author", [])
        names = [str(Text.from_latex(" ".join(person.prelast_names + person.last_names))) for person in people]
        if len(names) > 3 or "others" in names:
            names = [f"{names[0]} et al."]
        elif len(names) == 3:
            names = [", ".join(names[:2]) + ",", names[2]]
        return " and ".join(names), entry.fields.get("year", "n.d.")

    def to_html(self) -> str:
        """The entries that were cited, by author and year, each with the anchor ``ref-<key>``."""
        style = Style(name_style="lastfirst", abbreviate_names=False)
        items = [f'<div id="ref-{entry.key}" class="csl-entry">{entry.text.render(Backend("utf-8"))}</div>'
                 for entry in style.format_bibliography(self._data, sorted(self._cited))]  # fmt: skip
        return '<div id="refs" class="references csl-bib-body">\n{}\n</div>'.format("\n".join(items))
