"""Only what a run has stays in its pages; a card of the page *Extensions* stands for each other chapter or section.

A card has the label of what it stands for, so that references lead to it, and a block ``snapshot``: what to show of the
project's own last full run, kept in ``book/snapshots/``. The block's first variable says whether a run has that part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from polydetox.core import paths
from polydetox.core.artifacts import read_json

PAGE = "extensions.qmd"
SNAPSHOTS = "snapshots"

EMBED = re.compile(r"^\{\{<\s*embed\s+summary/(\S+?)\.ipynb#([\w-]+)\s*>\}\}[ \t]*$", re.MULTILINE)
VARIABLE = re.compile(r"\{\{<\s*var\s+([\w.-]+)\s*>\}\}")
CROSS_REFERENCE = re.compile(r"(?<![\w@/.])@((?:fig|tbl|sec|eq)-[\w-]+)")
CARD = re.compile(r"^## [^\n]*\{#(sec-[\w-]+)\}$.*?^::: \{\.snapshot\}\n(.*?)^:::\n+", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^::: \{\.snapshot\}\n.*?^:::$", re.MULTILINE | re.DOTALL)
_LABEL = re.compile(r"\{#((?:fig|tbl|sec|eq)-[\w-]+)")
_LED_BY_LINK = re.compile(r"^(?:- )?\[[^\[\]]*\]\(([\w-]+\.qmd)[^()]*\)(?:.|\n(?!- |\n))*\n", re.MULTILINE)
_LINK = re.compile(r"\]\(([\w-]+\.qmd)(#[\w-]+\))")
_NOT_RUN = re.compile(r"Not run(\.| yet\.| in this profile)")
_FOLLOWING = re.compile(rf"(?<=>\}}\}})\s{VARIABLE.pattern}")  # a sentence after another one goes if it was not run


def ran(template: str, variables: dict[str, str]) -> bool:
    """Whether a run has what a card stands for, by the first variable of its snapshot; of none, its sections decide."""
    said = VARIABLE.search(template)
    return said is None or not _NOT_RUN.match(variables.get(said[1], "Not run."))


def keep_what_ran(folder: Path, variables: dict[str, str]) -> set[str]:
    """Take what was not run out of the pages in ``folder`` where *Extensions* has a card for it.

    Links follow; an item or paragraph that begins with a link to a page that has gone goes too. Returns the pages gone.
    """
    extensions = (folder / PAGE).read_text("utf-8") if (folder / PAGE).is_file() else ""
    before = {page.name: page.read_text("utf-8") for page in folder.glob("*.qmd") if page.name != PAGE}
    pages = dict(before)
    for label in (label for label, template in CARD.findall(extensions) if not ran(template, variables)):
        section = re.compile(rf"^(#+) [^\n]*\{{#{label}\}}$.*?(?=^#{{1,2}} |\Z)", re.MULTILINE | re.DOTALL)
        for name, text in pages.items():
            found = section.search(text)
            pages[name] = "" if found and found[1] == "#" else section.sub("", text)
    # A chapter goes as well once all its sections have.
    gone = {name for name, text in pages.items() if text != before[name] and "\n## " not in text}
    kept = {name: text for name, text in pages.items() if name not in gone}
    there = {label for text in kept.values() for label in _LABEL.findall(text)}
    shown = CARD.sub(lambda card: "" if card[1] in there else snapshot(card), extensions)
    if "\n## " in shown:
        kept[PAGE] = shown
    gone |= {PAGE} - set(kept)
    cut = _targets(before.values()) - _targets(kept.values())
    for name, text in kept.items():
        text = _LED_BY_LINK.sub(lambda item: "" if item[1] in gone else item[0], text)
        text = _LINK.sub(lambda link: f"]({PAGE}{link[2]}" if link[1] in gone else link[0], text)
        text = CROSS_REFERENCE.sub(lambda match: "(not run)" if match[1] in cut else match[0], text)
        text = _FOLLOWING.sub(lambda said: "" if _NOT_RUN.match(variables.get(said[1], "")) else said[0], text)
        (folder / name).write_text(text, "utf-8")
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return gone


def _targets(pages: Iterable[str]) -> set[str]:
    """What references to the pages can lead to, before their embeds are filled."""
    return {label for text in pages for label in [*_LABEL.findall(text), *(label for _, label in EMBED.findall(text))]}


def snapshot(card: re.Match[str]) -> str:
    """A card with the committed snapshot and its origin; without its block where there is none."""
    file = paths.root() / "book" / SNAPSHOTS / f"{card[1]}.json"
    if not file.is_file():
        return _BLOCK.sub("", card[0])
    made = read_json(file)
    origin = f"{made['model']}, profile `{made['profile']}`, {made['date']}, commit {made['commit']}"
    return _BLOCK.sub(lambda _: f"{made['text']}\n\n*From the last full run: {origin}.*", card[0])
