"""Citations and bibliography for the preview renderer, in the author-date style that Quarto uses by default."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

from pybtex.database import Entry, Person, parse_file
from pybtex.exceptions import PybtexError
from pybtex.richtext import Text

from polydetox.core.errors import UserError

_GROUP = re.compile(r"\[([^\[\]]*?-?@[^\[\]]+)\](?!\()")
_ITEM = re.compile(r"^(?P<prefix>.*?)(?P<only_year>-?)@(?P<key>[A-Za-z][\w:-]*\w)(?P<suffix>.*)$", re.DOTALL)
_NARRATIVE = re.compile(r"(?<![\w@/.])@(?!(?:fig|tbl|sec|eq)-)([A-Za-z][\w:-]*\w)")
_MANY_IN_TEXT = 3  # more authors than these are "et al." in the text
_MANY_IN_LIST = 10  # and more than these in the bibliography, after seven names


class Bibliography:
    """A BibTeX file, and which of its entries were cited."""

    def __init__(self, file: Path):
        try:
            self._entries = parse_file(str(file), bib_format="bibtex").entries if file.is_file() else {}
        except PybtexError as error:
            raise UserError(f"{file.name}: not valid BibTeX: {str(error).splitlines()[0]}") from None
        self.cited: set[str] = set()
        self._years = self._distinct_years()

    def _distinct_years(self) -> dict[str, str]:
        """The year of each entry, with a, b ... where two entries have the same authors and year."""
        groups: dict[tuple[str, str], list[str]] = {}
        for key, entry in self._entries.items():
            groups.setdefault((self._names(entry), entry.fields.get("year", "n.d.")), []).append(key)
        return {
            key: year + (chr(ord("a") + position) if len(keys) > 1 else "")
            for (_, year), keys in groups.items()
            for position, key in enumerate(sorted(keys))
        }

    def replace(self, prose: str, link: Callable[[str, str], str]) -> str:
        """Write out the citations of a piece of Markdown; ``link(text, key)`` makes a link to the bibliography.

        ``[@a; @b, p. 3]`` becomes (A 2020; B 2021, p. 3), ``@a`` becomes A (2020), ``[-@a]`` becomes (2020).
        """

        def group(match: re.Match[str]) -> str:
            items = [_ITEM.match(part.strip()) for part in match[1].split(";")]
            if not all(items) or any(item and re.match(r"(fig|tbl|sec|eq)-", item["key"]) for item in items):
                return match[0]
            return f"({'; '.join(self._parenthesised(item, link) for item in items if item)})"

        def narrative(match: re.Match[str]) -> str:
            key = match[1]
            return f"{self._names(self._entry(key))} ({link(self._years[key], key)})"

        return _NARRATIVE.sub(narrative, _GROUP.sub(group, prose))

    def _parenthesised(self, item: re.Match[str], link: Callable[[str, str], str]) -> str:
        key = item["key"]
        names = "" if item["only_year"] else f"{self._names(self._entry(key))} "
        return f"{item['prefix']}{link(f'{names}{self._years[key]}', key)}{item['suffix']}"

    def _entry(self, key: str) -> Entry:
        self.cited.add(key)
        return self._entries[key]

    def _names(self, entry: Entry) -> str:
        people, more = _people(entry)
        names = [_family(person) for person in people] or [_text(entry.fields.get("title", ""))]
        return f"{names[0]} et al." if more or len(names) > _MANY_IN_TEXT else _series(names)

    def to_html(self) -> str:
        """The entries that were cited, by author and year, each with the anchor ``ref-<key>``."""
        entries = sorted(self.cited, key=lambda key: (self._names(self._entries[key]).lower(), self._years[key]))
        items = "\n".join(f'<div id="ref-{key}" class="csl-entry">{self._listed(key)}</div>' for key in entries)
        return f'<div id="refs" class="references csl-bib-body">\n{items}\n</div>'

    def _listed(self, key: str) -> str:
        entry, fields = self._entries[key], self._entries[key].fields
        title = html.escape(_text(fields.get("title", "")))
        container = html.escape(_text(fields.get("journal") or fields.get("booktitle") or ""))
        parts = [f"{html.escape(_authors(entry)).rstrip('.')}. {self._years[key]}."]
        stop = "" if title.endswith(("?", "!")) else "."
        parts.append(f"&ldquo;{title}{stop}&rdquo;" if container else f"<em>{title}</em>{stop}")
        if "journal" in fields:
            issue = f" ({html.escape(fields['number'])})" if "number" in fields else ""
            pages = f": {_pages(fields['pages'])}" if "pages" in fields else ""
            parts.append(f"<em>{container}</em> {html.escape(fields.get('volume', ''))}{issue}{pages}.")
        elif container:
            volume = f", vol. {html.escape(fields['volume'])}" if "volume" in fields else ""
            pages = f", {_pages(fields['pages'])}" if "pages" in fields else ""
            parts.append(f"In <em>{container}</em>{volume}{pages}.")
        elif "howpublished" in fields or "publisher" in fields:
            parts.append(html.escape(_text(fields.get("howpublished") or fields["publisher"])) + ".")
        address = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields.get("url", "")
        if address:
            parts.append(f'<a href="{html.escape(address)}">{html.escape(address)}</a>.')
        return " ".join(parts)


def _people(entry: Entry) -> tuple[list[Person], bool]:
    """The authors, and whether the entry names more of them as "others"."""
    people = list(entry.persons.get("author", []))
    more = bool(people) and str(people[-1]) == "others"
    return (people[:-1] if more else people), more


def _authors(entry: Entry) -> str:
    """The authors as the bibliography lists them; of more than ten, the first seven."""
    people, more = _people(entry)
    names = [_full(person, first=not position) for position, person in enumerate(people)]
    if more or len(names) > _MANY_IN_LIST:
        return ", ".join([*(names[:7] if len(names) > _MANY_IN_LIST else names), "et al."])
    return ", and ".join(names) if len(names) == 2 else _series(names)


def _pages(pages: str) -> str:
    return html.escape(pages.replace("--", "–"))


def _text(latex: str) -> str:
    return str(Text.from_latex(latex))


def _family(person: Person) -> str:
    return _text(" ".join([*person.prelast_names, *person.last_names]))


def _full(person: Person, *, first: bool) -> str:
    """A name as the bibliography lists it: the first author's family name comes first."""
    given = _text(" ".join([*person.first_names, *person.middle_names]))
    family = _family(person)
    if not given:
        return family
    return f"{family}, {given}" if first else f"{given} {family}"


def _series(names: list[str]) -> str:
    if len(names) < 3:
        return " and ".join(names)
    return f"{', '.join(names[:-1])}, and {names[-1]}"
