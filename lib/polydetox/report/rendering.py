"""From an assembled book to a site: with Quarto where there is one, else with the preview renderer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from polydetox import paths
from polydetox.artifacts import atomic_folder
from polydetox.errors import UserError
from polydetox.report.assemble import assemble

INDEX = "index.html"

# What a renderer leaves where it could not resolve something. Quarto only warns.
_UNRESOLVED = re.compile(r"\?(?:var|meta):[\w.-]+|\?@[\w-]+|\{\{<[^>]*>\}\}|(?<![\w@/.;&])@(?:fig|tbl|sec|eq)-[\w-]+")
_NOT_PROSE = re.compile(
    r'<details class="masked">.*?</details>|<script\b.*?</script>|<pre\b.*?</pre>|<code\b.*?</code>', re.DOTALL
)


def render(profile: str, preview: bool = False) -> Path:
    """Assemble and render the report of a profile; returns the path of its first page.

    Quarto is ``$QUARTO``, or ``quarto`` on the path (``QUARTO=`` empty: none). The site takes the place of an older
    one only once it is whole and free of unresolved references.
    """
    book = assemble(profile)
    quarto = None if preview else find_quarto()
    with atomic_folder(paths.site(profile)) as site:
        if quarto:
            _render_with_quarto(quarto, book, site)
        else:
            from polydetox.report.preview import build

            build(book, site)
        check_site(site)
    return paths.site(profile) / INDEX


def find_quarto() -> str | None:
    """The Quarto command to use, or None; a ``UserError`` where ``$QUARTO`` names one that is not there."""
    named = os.environ.get("QUARTO")
    if named is None:
        return shutil.which("quarto")
    if not named:
        return None
    if shutil.which(named) is None:
        raise UserError(f"QUARTO={named}: no such command; correct it, or unset it for a preview")
    return named


def _render_with_quarto(quarto: str, book: Path, site: Path) -> None:
    """Render the book with Quarto into ``site``; what it says goes to ``quarto.log`` in the book."""
    log = book / "quarto.log"
    command = [quarto, "render", str(book), "--to", "html"]
    with open(log, "w", encoding="utf-8") as stream:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT).returncode
    if status:
        lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line.upper()] or lines[-1:] or ["no message"]
        raise UserError(f"Quarto failed (status {status}): {errors[0].strip()} (see {paths.relative(log)})")
    rendered = book / "_site"
    if not (rendered / INDEX).is_file():
        raise UserError(f"Quarto wrote no {paths.relative(rendered / INDEX)} (see {paths.relative(log)})")
    shutil.copytree(rendered, site, dirs_exist_ok=True)
    shutil.rmtree(rendered)


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
