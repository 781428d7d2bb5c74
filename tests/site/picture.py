"""README's picture and numbers of a finished run: ``make picture PROFILE=offline``.

README holds, for a profile, ``<!-- run offline: TEMPLATE -->TEXT<!-- end -->``. The template names numbers as pages of
the report do, ``{{< var NAME >}}``; the text is the template with those of the run. Where it has ``book/picture.png``,
the picture is taken again, of the first page of the run's site, in light.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import Browser, find_chromium
from polydetox.core import paths
from polydetox.core.artifacts import atomic_path
from polydetox.core.errors import UserError, nearest
from polydetox.core.yaml_files import read_yaml
from polydetox.report.assemble import VARIABLES
from polydetox.report.extensions import CROSS_REFERENCE, VARIABLE
from polydetox.report.rendering import INDEX
from polydetox.results.collect import Results
from polydetox.workflow import record_file

PICTURE = "book/picture.png"
BLOCK = re.compile(r"(<!-- run ([\w-]+): (.*?) -->)(.*?)(<!-- end -->)", re.DOTALL)


def filled(template: str, variables: dict[str, str]) -> str:
    """A template with the numbers of a run, and without references, which lead nowhere outside the report."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise UserError(f"README.md: variable {match[1]!r} is not in the run{nearest(match[1], sorted(variables))}")
        return CROSS_REFERENCE.sub("the report", variables[match[1]])

    return VARIABLE.sub(value, template)


def refresh(text: str, profile: str, variables: dict[str, str]) -> str:
    """README with the blocks of a profile filled; a ``UserError`` where it has none."""
    if profile not in {block[2] for block in BLOCK.finditer(text)}:
        raise UserError(f"README.md: no block `<!-- run {profile}: ... -->`; add one")

    def fill(block: re.Match[str]) -> str:
        return f"{block[1]}\n{filled(block[3], variables)}\n{block[5]}" if block[2] == profile else block[0]

    return BLOCK.sub(fill, text)


def take(site: Path, picture: Path) -> None:
    """A picture of a site's first page, in light."""
    command = find_chromium()
    if command is None:
        raise UserError("no Chromium: install Debian's chromium, or set CHROMIUM to the browser's command")
    with TemporaryDirectory(prefix="polydetox-") as folder:
        tab = Browser(command, Path(folder))
        try:
            tab.resize(1400, 1100)
            light = [{"name": "prefers-color-scheme", "value": "light"}]
            tab.command("Emulation.setEmulatedMedia", features=light)
            tab.open(site / INDEX)
            tab.evaluate("Promise.all([...document.images].map(image => image.decode()))")
            with atomic_path(picture) as file:
                tab.screenshot(file)
        finally:
            tab.close()


def main(profile: str) -> None:
    """Refresh README and, where the profile's block shows it, the picture."""
    readme, site = paths.root() / "README.md", paths.site(profile)
    unfinished = [run for run in Results(record_file(profile)).stages if not run.done]
    if unfinished or not (site / INDEX).is_file():
        raise UserError(
            f"{profile}: {len(unfinished)} jobs are not done, or no site; run `make paper PROFILE={profile}`"
        )
    variables = read_yaml(paths.profile_run(profile) / "book" / VARIABLES)
    before = readme.read_text("utf-8")
    text = refresh(before, profile, variables)
    if any(PICTURE in block[3] for block in BLOCK.finditer(text) if block[2] == profile):
        take(site, paths.root() / PICTURE)
    with atomic_path(readme) as file:
        file.write_text(text, "utf-8")


if __name__ == "__main__":
    try:
        main(os.environ.get("PROFILE", "offline"))
    except UserError as error:
        sys.exit(f"picture: {error}")
