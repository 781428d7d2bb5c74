"""The site on a profile's first languages, rendered while the rest of the run is still being computed."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import synthetic
from polydetox.workflow import FIRST, write_record
from synthetic import PROFILE, inside


@pytest.fixture(scope="module")
def early(run_folder, tmp_path_factory) -> Iterator[Path]:
    """The made-up run when German and English are evaluated, and the site on them; no section of the report is made."""
    from polydetox.cli import main

    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("first") / "run", symlinks=True)
    file = folder / f"checkout/params/profiles/{PROFILE}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"first": ["en", "de"]}))
    for left in ("summary", "site", "book"):
        shutil.rmtree(folder / "runs" / PROFILE / left, ignore_errors=True)
    for variant in ("base", synthetic.TRAINED):
        stages = folder / "runs" / PROFILE / synthetic.MODEL / variant
        (stages / FIRST).mkdir()
        for stage in ("generate", "score", "evaluate"):
            (stages / stage).rename(stages / FIRST / stage)
    with inside(folder):
        synthetic.run_summaries(folder / "checkout", folder / "runs", ["first", "detox", "run"], FIRST)
        assert main(["render", "--profile", PROFILE, "--first"]) == 0
        yield folder / "runs" / PROFILE / FIRST / "site"


@pytest.fixture(scope="module")
def again(early, tmp_path_factory) -> Iterator[Path]:
    """The same, rendered again when the chapter on capability is done."""
    from polydetox.cli import main

    folder = shutil.copytree(early.parents[3], tmp_path_factory.mktemp("again") / "run", symlinks=True)
    with inside(folder):
        write_record(f"{PROFILE}/{FIRST}")  # whose paths are those of this folder
        synthetic.run_summaries(folder / "checkout", folder / "runs", ["capability"])
        assert main(["render", "--profile", PROFILE, "--first"]) == 0
        yield folder / "runs" / PROFILE / FIRST / "site"


def words(page: Path) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.read_text("utf-8"))))


def test_the_first_page_says_what_it_is_about_and_what_is_to_come(early):
    said = words(early / "index.html")
    assert "This site is about German and English alone." in said
    assert "other languages: Arabic and Japanese" in said
    assert "other ways of tuning: LoRA, 2e-6, seed 1 and shuffled labels" in said and "further prompts: Further" in said
    assert "chapters: the toxicity probe, value vectors, activations and interventions; " in said
    assert "Of the 4 evaluations that the profile asks for, 4 were run." in said
    assert '<a href="../../site/index.html">' in (early / "index.html").read_text("utf-8")
    assert "in English," in said and "in 1 other language" in said, "the abstract is about these languages"
    assert "Not run" not in said, "a sentence of the abstract that is to come is left out"


def test_what_is_to_come_is_called_so_and_not_what_nobody_asked_for(early):
    said = words(early / "extensions.html")
    assert "Asked for by this run, and still being computed: the toxicity probe" in said
    assert not (early / "why.html").exists()


def test_a_chapter_that_is_done_comes_in(early, again):
    assert not (early / "capability.html").exists() and "everyday_en" not in words(early / "index.html")
    assert "before and after tuning" in words(early / "index.html").partition("chapters: ")[2]
    assert "Multiple-choice questions" in words(again / "capability.html")
    assert "capability.html" in (again / "index.html").read_text("utf-8")
    said = words(again / "index.html").partition("chapters: ")[2].partition("What is to come")[0]
    assert "the toxicity probe" in said and "before and after tuning" not in said
    assert "before and after tuning" not in words(again / "extensions.html")
    assert "Arabic" not in words(again / "results-detox.html"), "the first languages, until the whole report is there"


def test_the_pages_are_about_the_first_languages_and_one_way_of_tuning(early):
    said = words(early / "results-detox.html")
    assert "German" in said and "Arabic" not in said and "LoRA" not in said


def test_the_whole_report_has_no_such_note(site):
    assert "still being computed" not in words(site / "index.html")
    assert not (site / "extensions.html").exists() or "still being computed" not in words(site / "extensions.html")
