"""The chapters of an assembled book as a PDF, which Quarto sets with Typst.

The notebooks stay out of it, and so does every text that the site covers: paper has no covers.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from polydetox.core.errors import UserError
from polydetox.core.yaml_files import read_yaml
from polydetox.quarto import run_quarto
from polydetox.report.appendices import FOLDER, LIST
from polydetox.report.assemble import CONFIGURATION, write_yaml
from polydetox.report.masking import BODY

FILE = "report.pdf"

_LINK = re.compile(r"\[([^\[\]]+)\]\(([\w/-]+\.qmd)[^()]*\)")
_RAW = re.compile(r"^(`{3,})\{=html\}\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"<(t[dh])((?:\s[^>]*)?)>(.*?)</\1>", re.DOTALL)


def make_pdf(quarto: str, book: Path) -> None:
    """Write ``report.pdf`` into an assembled book, and let its site link it; a ``UserError`` where Quarto fails."""
    configuration = read_yaml(book / CONFIGURATION)
    with TemporaryDirectory(prefix="pdf-", dir=book.parent) as folder:
        copy = Path(folder) / "book"
        shutil.copytree(book, copy, ignore=shutil.ignore_patterns(FOLDER, LIST, "_site", ".quarto"))
        for page in copy.glob("*.qmd"):
            text = _LINK.sub(partial(_link_within, copy), page.read_text("utf-8"))
            page.write_text(for_paper(text), "utf-8")
        # A part would be a page of its own, on which Quarto's template prints the contents over the title.
        chapters = [file for item in configuration["book"]["chapters"]
                    for file in ([item] if isinstance(item, str) else item["chapters"])]  # fmt: skip
        described = {key: value for key, value in configuration["book"].items() if key != "appendices"}
        described |= {"chapters": chapters, "output-file": Path(FILE).stem}
        write_yaml(copy / CONFIGURATION, configuration | {"book": described})
        run_quarto(quarto, copy, "typst", book / "quarto-pdf.log")
        made = copy / "_site" / FILE
        if not made.is_file():
            raise UserError("Quarto made no PDF; see quarto-pdf.log in the assembled book")
        shutil.copy(made, book / FILE)
    configuration["project"]["resources"] = [FILE]
    link = {"icon": "file-pdf", "href": FILE, "text": "This report as a PDF"}
    configuration["book"]["sidebar"] = {**configuration["book"].get("sidebar", {}), "tools": [link]}
    write_yaml(book / CONFIGURATION, configuration)


def _link_within(book: Path, link: re.Match[str]) -> str:
    """A link between pages, or its words alone where it leads to a page that the book does not have."""
    return link[0] if (book / link[2]).is_file() else link[1]


def for_paper(text: str) -> str:
    """A page without its covered texts, whose tables say how they are aligned."""
    return _RAW.sub(lambda block: "" if BODY in block[0] else _CELL.sub(_aligned, block[0]), text)


def _aligned(cell: re.Match[str]) -> str:
    """A table's cell as the site's style sheet has it: aligned, headings bold, no line break within an interval."""
    tag, attributes, content = cell.groups()
    side = "right" if "number" in attributes else "center" if "span" in attributes and tag == "th" else "left"
    if "number" in attributes and tag == "td":
        content = content.replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")
        content = content.replace(" → ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    if content and (tag == "th" or "colspan" in attributes):
        content = f"<strong>{content}</strong>"
    return f'<{tag}{attributes} style="text-align: {side}">{content}</{tag}>'
