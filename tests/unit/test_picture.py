"""README's numbers are those of a run, between marks that `make picture` fills."""

from __future__ import annotations

import re

import pytest
from picture import BLOCK, PICTURE, refresh

from polydetox.core.errors import UserError
from polydetox.report.extensions import VARIABLE
from tiny import CHECKOUT

README = (CHECKOUT / "README.md").read_text("utf-8")
TEXT = """A.
<!-- run small: It took {{< var time >}}.

{{< var said >}} -->
It took an hour.
<!-- end -->
<!-- run large: {{< var time >}} --><!-- end -->
B."""


def test_the_blocks_of_a_profile_are_filled_and_nothing_else_is_touched():
    text = refresh(TEXT, "small", {"time": "2 min", "said": "See @tbl-main."})
    assert text == TEXT.replace("It took an hour.\n", "It took 2 min.\n\nSee the report.\n")
    assert refresh(text, "small", {"time": "3 min", "said": "x"}) == text.replace(
        "2 min.\n\nSee the report.", "3 min.\n\nx"
    )
    assert "<!-- run large: {{< var time >}} -->\n9 s\n<!-- end -->" in refresh(TEXT, "large", {"time": "9 s"})


def test_a_number_that_the_run_lacks_and_a_profile_without_a_block_are_named():
    with pytest.raises(UserError, match=r"README.md: variable 'said' is not in the run; did you mean 'sad'"):
        refresh(TEXT, "small", {"time": "2 min", "sad": "x"})
    with pytest.raises(UserError, match=r"README.md: no block `<!-- run other: ... -->`"):
        refresh(TEXT, "other", {})


def test_readme_asks_for_what_runs_have_and_shows_what_a_run_gave():
    sources = "".join(file.read_text("utf-8") for file in (CHECKOUT / "notebooks").rglob("summary_*.ipynb"))
    known = set(re.findall(r'\\"(\w+)\\": ', sources))
    ((_, profile, template, text, _),) = BLOCK.findall(README)
    assert (CHECKOUT / f"params/profiles/{profile}.yaml").is_file() and README.count(PICTURE) == 2
    assert set(VARIABLE.findall(template)) <= known
    words = [re.escape(part) for part in VARIABLE.split(template)[::2]]
    picture = r"!\[[^\]]*\]\(book/picture\.png\)"  # all that stands there until a run has been taken
    assert re.fullmatch(f"{'(.+)'.join(words)}|{picture}", text.strip())
