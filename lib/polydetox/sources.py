"""The data sources that ``params/data.yaml`` lists."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from polydetox import paths
from polydetox.params import Strict, explain, read_yaml


class Source(Strict):
    """One data source: where it is, what it may be used for, and how to get it."""

    title: str
    what: str
    address: str
    licence: str
    citation: str | None
    how: str


def sources() -> dict[str, Source]:
    """Every source of ``params/data.yaml``, by name."""
    file = paths.root() / "params" / "data.yaml"
    try:
        return TypeAdapter(dict[str, Source]).validate_python(read_yaml(file))
    except ValidationError as error:
        raise explain(error, paths.relative(file)) from None


def table() -> str:
    """The sources as text for the terminal."""
    blocks = []
    for name, source in sources().items():
        blocks.append(
            f"{name}: {source.title}\n  what:    {source.what}\n  address: {source.address}\n"
            f"  licence: {source.licence}\n  how:     {source.how}"
        )
    return "\n\n".join(blocks)
