"""ProFS, which edits value vectors instead of training them; its notebook holds the method."""

from __future__ import annotations

from polydetox.core.errors import UserError


def check_rank(where: str, rank: int, pairs: int | None, hidden: int | None) -> None:
    """Refuse more directions than ``pairs`` can span, or all ``hidden`` of them; None: not known yet."""
    if pairs is not None and rank > pairs:
        raise UserError(f"{where}: rank {rank}: differences of {pairs} pairs span at most {pairs} directions; lower "
                        "'rank', or give more pairs (see 'pair_limit')")  # fmt: skip
    if hidden is not None and rank >= hidden:
        raise UserError(f"{where}: rank {rank}: the model's hidden states have {hidden} directions, and not all can be "
                        "removed; lower 'rank'")  # fmt: skip
