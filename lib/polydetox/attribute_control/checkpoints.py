"""Checkpoints of constrained decoding, which transformers' auto classes have to be told of."""

from __future__ import annotations

from pathlib import Path

from polydetox.core.artifacts import read_json
from polydetox.core.errors import UserError


def engine_of(weights: Path, wanted: str) -> str:
    """The engine for a checkpoint: vLLM does not know a NADO checkpoint, so that takes transformers.

    Raises:
        UserError: vLLM was asked for by name, for a NADO checkpoint.
    """
    from polydetox.attribute_control.head import NadoConfig  # with it transformers knows the class

    if read_json(weights / "config.json").get("model_type") != NadoConfig.model_type:
        return wanted
    if wanted == "vllm":
        raise UserError("vLLM cannot decode with a NADO head; set engine: transformers (or auto) for the method nado")
    return "transformers"
