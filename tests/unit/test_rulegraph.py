"""The picture of the workflow in README and report is Snakemake's of the rules as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from xml.etree import ElementTree

from tiny import CHECKOUT

SVG = "{http://www.w3.org/2000/svg}"
OF_THE_REPORT = {"site", "record", "summary", "render"}
NOT_DRAWN = {"trim", "profs", "label_sheet", "human_labels"}  # README says where they stand


def drawn() -> tuple[list[str], list[tuple[str, str]]]:
    """The stages and arrows of the picture, by name."""
    names, arrows = {}, []
    for group in ElementTree.parse(CHECKOUT / "book/rulegraph.svg").iter(f"{SVG}g"):
        title = group.findtext(f"{SVG}title")
        if group.get("class") == "node":
            names[title] = group.findtext(f"{SVG}text")
        elif group.get("class") == "edge":
            arrows.append(title.split("->"))
    return sorted(names.values()), sorted((names[start], names[end]) for start, end in arrows)


def asked(profile: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The same as Snakemake has it for a profile, by the command of `make rulegraph`."""
    command = [sys.executable, "-m", "snakemake", "--quiet", "all", "--config", f"profile={profile}", "--rulegraph",
               "--omit-from", "record"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYDETOX_")}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', done.stdout))
    arrows = [(names[start], names[end]) for start, end in re.findall(r"(\d+) -> (\d+)", done.stdout)]
    return list(names.values()), arrows


def test_the_picture_of_the_rules_is_up_to_date():
    makefile = (CHECKOUT / "Makefile").read_text("utf-8")
    stages, arrows = [], []
    for profile in re.search(r"^DRAWN := (.+)$", makefile, re.MULTILINE)[1].split():
        found = asked(profile)
        stages += found[0]
        arrows += found[1]
    assert drawn() == (sorted(stages), sorted(arrows)), "run `make rulegraph`"
    rules = {name for file in [CHECKOUT / "Snakefile", *(CHECKOUT / "rules").glob("*.smk")]
             for name in re.findall(r"^rule (\w+):", file.read_text("utf-8"), re.MULTILINE)}  # fmt: skip
    assert rules - set(stages) == OF_THE_REPORT | NOT_DRAWN, "the profiles drawn have every other stage"
    for page, address in (("README.md", "book/rulegraph.svg"), ("book/reproducibility.qmd", "rulegraph.svg")):
        assert f"]({address})" in (CHECKOUT / page).read_text("utf-8")
