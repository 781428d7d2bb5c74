"""RTP-LX (de Wynter et al. 2024): the rows of one language, out of a folder of ``RTP_LX_<LOCALE>.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydetox.core.errors import UserError
from polydetox.core.languages import known_locale, rtp_lx_locales
from polydetox.data.catalogue import check_named, local_path
from polydetox.data.rows import Skipped, check_rows, read_rows
from polydetox.data.schemas import whole_number


def rtp_lx_file(folder: str | Path, language: str) -> Path:
    """The file of one language in a folder of ``RTP_LX_<LOCALE>.json``; a ``UserError`` where there is none."""
    check_named(folder, "rtp-lx")
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold RTP_LX_<LOCALE>.json (see `polydetox data`)")
    found = {path.stem.lower(): path for path in sorted(folder.glob("*.json"))}
    for locale in rtp_lx_locales(language):
        if path := found.get(f"rtp_lx_{locale}".lower()):
            return path
    have = ", ".join(known_locale(path.stem[7:]) for name, path in found.items() if name.startswith("rtp_lx_"))
    raise UserError(
        f"{folder}: no RTP_LX_{rtp_lx_locales(language)[0]}.json for language {language!r} (found: {have or 'none'})"
    )


def rtp_lx_rows(folder: str | Path, language: str) -> tuple[list[dict[str, Any]], Skipped]:
    """The rows of one language, ordered by ``Index``, and what was rejected; JSON lines or one JSON array.

    ``Index`` numbers the English original, as far as it was kept, while a row's place in the file numbers nothing.
    Measured with sentence embeddings in eight languages of the version of 2024: a row translates the English row of
    its ``Index`` up to 959; from 960 on, in Arabic, Chinese, French, German and Spanish, that of the ``Index`` before
    (in Indonesian, Japanese and Russian of the same); from 1,000 on, rows are each language's own. A version without
    ``Index`` is numbered by place.
    """
    read = read_rows(rtp_lx_file(folder, language))
    numbered = any(row.get("Index") is not None for _, row in read.rows)
    seen: dict[int, int] = {}
    for line, row in read.rows if numbered else []:
        index = row.get("Index")
        if index is None:
            read.reject(line, "Index", "is missing, which other rows have")
        elif whole_number(index) and seen.setdefault(int(index), line) != line:
            read.reject(line, "Index", f"is {int(index)}, which line {seen[int(index)]} has already")
    kept, rejected = check_rows(read, "rtp-lx")
    rows = [{**row, "Index": int(row["Index"]) if numbered else place, "numbered": numbered}
            for place, (_, row) in enumerate(kept)]  # fmt: skip
    return sorted(rows, key=lambda row: row["Index"]), Skipped(rejected=rejected)


def rtp_lx_id(row: dict[str, Any]) -> str:
    """The id of a row's prompt."""
    return f"rtp-lx-{row['Index']:05d}"
