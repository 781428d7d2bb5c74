"""From an assembled book to a site: with Quarto where there is one, else with the preview renderer."""

from __future__ import annotations

import re
import shutil
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from polydetox.core import paths
from polydetox.core.artifacts import atomic_folder
from polydetox.core.errors import UserError
from polydetox.core.yaml_files import read_yaml
from polydetox.quarto import COLOURS, ERROR_FILE, failure_note, find_quarto, run_quarto, why_none
from polydetox.report.appendices import FOLDER, LIST
from polydetox.report.assemble import CONFIGURATION, assemble, write_yaml
from polydetox.report.links import FILES
from polydetox.report.masking import BODY, uncover_nothing
from polydetox.report.notebooks import without_machine_paths

INDEX = "index.html"
PDF = "report.pdf"

_LINK = re.compile(r"\[([^\[\]]+)\]\(([\w/-]+\.qmd)[^()]*\)")
_RAW = re.compile(r"^(`{3,})\{=html\}\n.*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"<(t[dh])((?:\s[^>]*)?)>(.*?)</\1>", re.DOTALL)

# In a site: a caption with what is between it and its table, the parts of a table, and the first cell of a row.
_CAPTION = re.compile(
    r"<figcaption\b([^>]*)>((?:(?!</figcaption>).)*)</figcaption>"
    r"((?:(?!</?figure\b|<figcaption\b).)*?<table\b[^>]*>)",
    re.DOTALL,
)
_PART = re.compile(r"<(thead|tbody)\b.*?</\1>", re.DOTALL)
_FIRST = re.compile(r"(<tr\b[^>]*>\s*)<t[dh]\b(?![^>]*\bscope=)([^>]*)>((?:(?!</t[dh]>).)+)</t[dh]>", re.DOTALL)

# What a renderer leaves where it could not resolve something. Quarto only warns.
_UNRESOLVED = re.compile(r"\?(?:var|meta):[\w.-]+|\?@[\w-]+|\{\{<[^>]*>\}\}|(?<![\w@/.;&])@(?:fig|tbl|sec|eq)-[\w-]+")
_NOT_PROSE = re.compile(
    r'<details class="masked">.*?</details>|<script\b.*?</script>|<pre\b.*?</pre>|<code\b.*?</code>', re.DOTALL
)


def render(profile: str, preview: bool = False, pdf: bool = False) -> Path:
    """Assemble and render the report of a profile, with a PDF of the chapters if asked; returns its first page.

    The preview renderer makes the site where there is no Quarto, or where its site does not pass :func:`check_site`.
    """
    book = assemble(profile)
    quarto = None if preview else find_quarto()
    if pdf:
        if quarto is None:
            raise UserError(f"a PDF needs Quarto, and there is none: {why_none()}")
        make_pdf(quarto, book)
    failure = _with_quarto(quarto, book, profile) if quarto else None
    if quarto and failure is None:
        return paths.site(profile) / INDEX
    if failure:
        # As HTML, since the renderer takes a link to what is written after it for a broken one.
        messages, line = f'<a href="{ERROR_FILE}">messages</a>', _plain_text(failure.splitlines()[0])
        note = f"Quarto failed (its {messages} are kept): <code>{line}</code>"
    elif preview:
        note = "It was asked for."
    else:
        note = f"Why there is none: {without_machine_paths(why_none())}."
    with atomic_folder(paths.site(profile)) as site:
        from polydetox.report.preview import build

        build(book, site, note)
        if failure:
            (site / ERROR_FILE).write_text(failure, "utf-8")
        _finish(site, book)
    if said := failure_note(profile):
        print(said, file=sys.stderr)
    return paths.site(profile) / INDEX


def _finish(site: Path, book: Path) -> None:
    """What a rendered site still needs, whichever renderer made it; a ``UserError`` where it does not pass."""
    shutil.copytree(book / FILES, site / FILES[1:])
    uncover_nothing(site)
    make_accessible(site, book)
    check_site(site)


def _plain_text(line: str) -> str:
    """A line in which Markdown sees nothing but words."""
    return re.sub(r"[^\w\s.,:;()/-]", lambda match: f"&#{ord(match[0])};", line.replace("`", ""))


def _with_quarto(quarto: str, book: Path, profile: str) -> str | None:
    """Let Quarto's site take the place of the older one; where it cannot, keep it aside and return why."""
    refused = paths.site(profile).with_name("site.refused")
    shutil.rmtree(refused, ignore_errors=True)
    log = book / "quarto.log"
    try:
        with atomic_folder(paths.site(profile)) as site:
            rendered = run_quarto(quarto, book, "html", log)
            if not (rendered / INDEX).is_file():
                raise UserError(f"it wrote no {INDEX}")
            shutil.copytree(rendered, site, dirs_exist_ok=True)
            shutil.rmtree(rendered)
            try:
                _finish(site, book)
            except UserError as error:
                shutil.copytree(site, refused)
                raise UserError(f"{error}; Quarto's site is kept in {paths.relative(refused)}") from None
    except UserError as error:
        said = COLOURS.sub("", log.read_text("utf-8", errors="replace")) if log.is_file() else ""
        return without_machine_paths(f"{error}\n\n{said}")
    return None


def make_accessible(site: Path, book: Path) -> None:
    """Give each page a link past its navigation, and tables captions and headings that a screen reader knows."""
    skip = (book / "skip.html").read_text("utf-8")
    for page in site.rglob("*.html"):
        text = _CAPTION.sub(r"\3<caption\1>\2</caption>", page.read_text("utf-8"))
        text = re.sub(r"<body\b[^>]*>", lambda body: body[0] + skip, text, count=1)
        page.write_text(_PART.sub(_with_scopes, text), "utf-8")


def _with_scopes(part: re.Match[str]) -> str:
    """A table's head or body whose headings say what they head; the first cell of a row of the body is one."""
    if part[1] == "tbody":
        return _FIRST.sub(r'\1<th scope="row"\2>\3</th>', part[0])
    head = re.sub(r"<th\b([^>]*)></th>", r"<td\1></td>", part[0])
    head = re.sub(r'<th\b(?=[^>]*colspan="(?!1"))', '<th scope="colgroup"', head)
    return re.sub(r"<th\b(?![^>]*\bscope=)", '<th scope="col"', head)


def check_site(site: Path) -> None:
    """Refuse a site with an unresolved variable, reference or shortcode, or with a path of this machine."""
    machine = [str(folder) for folder in {paths.root(), paths.runs()} if len(str(folder)) > 1]
    pages = sorted(site.rglob("*.html"))
    if site / INDEX not in pages:
        raise UserError(f"the rendered site has no {INDEX}")
    for page in pages:
        text = page.read_text("utf-8")
        found = _UNRESOLVED.search(_NOT_PROSE.sub("", text))
        if found:
            raise UserError(f"{page.relative_to(site)}: {found[0]!r} was not resolved")
        for path in machine:
            if path in text:
                raise UserError(f"{page.relative_to(site)}: holds the path {path!r} of this machine")


# --- the chapters as a PDF: the notebooks stay out of it, and so does every covered text, since paper has no covers


def make_pdf(quarto: str, book: Path) -> None:
    """Write ``report.pdf`` into an assembled book, and let its site link it; a ``UserError`` where Quarto fails."""
    configuration = read_yaml(book / CONFIGURATION)
    with TemporaryDirectory(prefix="pdf-", dir=book.parent) as folder:
        copy = Path(folder) / "book"
        shutil.copytree(book, copy, ignore=shutil.ignore_patterns(FOLDER, FILES, LIST, "_site", ".quarto"))
        for page in copy.glob("*.qmd"):
            text = _LINK.sub(partial(_link_within, copy), page.read_text("utf-8"))
            page.write_text(for_paper(text), "utf-8")
        # A part would be a page of its own, on which Quarto's template prints the contents over the title.
        chapters = [file for item in configuration["book"]["chapters"]
                    for file in ([item] if isinstance(item, str) else item["chapters"])]  # fmt: skip
        described = {key: value for key, value in configuration["book"].items() if key != "appendices"}
        described |= {"chapters": chapters, "output-file": Path(PDF).stem}
        write_yaml(copy / CONFIGURATION, configuration | {"book": described})
        run_quarto(quarto, copy, "typst", book / "quarto-pdf.log")
        made = copy / "_site" / PDF
        if not made.is_file():
            raise UserError("Quarto made no PDF; see quarto-pdf.log in the assembled book")
        shutil.copy(made, book / PDF)
    configuration["project"]["resources"] = [PDF]
    link = {"icon": "file-pdf", "href": PDF, "text": "This report as a PDF"}
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
    side = "right" if "number" in attributes else "center" if 'class="span"' in attributes else "left"
    if "number" in attributes and tag == "td":
        content = content.replace(" to ", "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}")
        content = content.replace(" → ", "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}")
    if content and tag == "th":
        content = f"<strong>{content}</strong>"
    return f'<{tag}{attributes} style="text-align: {side}">{content}</{tag}>'
