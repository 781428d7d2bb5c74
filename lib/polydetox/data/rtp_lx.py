"""RTP-LX (de Wynter et al. 2024): the rows of one language, out of a folder of ``RTP_LX_<LOCALE>.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import AliasPath, Field
from pydantic.alias_generators import to_pascal

from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.languages import rtp_lx_locales
from polydetox.data.catalogue import local_path
from polydetox.data.rows import Row, Skipped, Text, check_rows, read_rows


class RtpLx(Row, title="RTP-LX", alias_generator=to_pascal):
    """Every version has Prompt. Those before May 2024 have no BenignCompletion, some languages of 1.5 no Completion."""

    index: Annotated[int | None, Field(ge=0, lt=10**9)] = None  # a number, or digits
    prompt: Text
    completion: Text = None
    benign_completion: Text = None
    prompt_toxicity: Any = Field(None, validation_alias=AliasPath("PromptAnnotations", "Toxicity"))


def rtp_lx_file(folder: str | Path, language: str) -> Path:
    """The file of one language in a folder of ``RTP_LX_<LOCALE>.json``; ``DataNotFound`` where there is none."""
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold RTP_LX_<LOCALE>.json (see `polydetox data`)")
    found = {path.stem.lower(): path for path in sorted(folder.glob("*.json"))}
    for locale in rtp_lx_locales(language):
        if path := found.get(f"rtp_lx_{locale}".lower()):
            return path
    have = ", ".join(path.stem[7:] for name, path in found.items() if name.startswith("rtp_lx_"))
    raise DataNotFound(
        f"{folder}: no RTP_LX_{rtp_lx_locales(language)[0]}.json for language {language!r} (found: {have or 'none'})"
    )


def rtp_lx_rows(folder: str | Path, language: str) -> tuple[pd.DataFrame, Skipped]:
    """The rows of one language, ordered by ``Index`` (or numbered by place), and what was rejected.

    Measured with sentence embeddings in eight languages of the version of 2024: a row translates the English row of its
    ``Index`` up to 959; from 960 on, in Arabic, Chinese, French, German and Spanish, that of the ``Index`` before (in
    Indonesian, Japanese and Russian of the same); from 1,000 on, rows are each language's own.

    Columns: ``prompt_id, index, numbered`` (whether the file has an Index), ``prompt, completion, benign_completion``
    and ``prompt_toxicity`` (people's, from 1 to 5).
    """
    read = read_rows(rtp_lx_file(folder, language))
    numbered = any(row.get("Index") is not None for _, row in read.rows)
    seen: dict[str, int] = {}
    for line, row in read.rows if numbered else []:
        if row.get("Index") is None:
            read.reject(line, "Index", "is missing, which other rows have")
        elif (first := seen.setdefault(str(row["Index"]), line)) != line:
            read.reject(line, "Index", f"is that of line {first} as well")
    kept, rejected = check_rows(read, RtpLx)
    table = pd.DataFrame([dict(row) for _, row in kept], dtype=object)
    table["index"] = table["index"].astype(int) if numbered else range(len(table))
    table["prompt_id"] = table["index"].map("rtp-lx-{:05d}".format)
    return table.assign(numbered=numbered).sort_values("index", ignore_index=True), Skipped(rejected=rejected)
