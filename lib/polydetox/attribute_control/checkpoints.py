"""The checkpoint of each method of attribute control, loaded alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polydetox import paths
from polydetox.artifacts import finished, read_json
from polydetox.errors import UserError, nearest
from polydetox.models.checkpoints import checkpoint_of, inference_dtype, load_causal_lm, load_tokenizer
from polydetox.params import control_methods, load_model, load_profile

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def method_weights(profile: str, model: str, method: str) -> Path:
    """The folder of a method's checkpoint; ``base`` is the model that all of them start from.

    Raises:
        UserError: the profile has no such method, or it is not trained yet.
    """
    known = control_methods(load_profile(profile))
    if method not in known:
        said = f"the profile's methods are {', '.join(known)}" if known else "the profile has no section 'control'"
        raise UserError(f"params/profiles/{profile}.yaml: method {method!r}{nearest(method, known)} ({said})")
    if method == "base":
        return checkpoint_of(profile, model)
    folder = paths.regularise(profile, load_model(model).name, method)
    if not finished(folder):
        raise UserError(
            f"{paths.relative(folder)}: method {method!r} of {model} is not trained yet; run "
            f"`polydetox run --profile {profile}` first"
        )
    # A NADO checkpoint is known to transformers' auto classes from here on.
    from polydetox.attribute_control import head  # noqa: F401

    return folder / "weights"


def load_method(
    profile: str, model: str, method: str, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model of one method, in evaluation mode, and its tokenizer.

    Its ``forward`` gives the method's next-token logits: of fine-tuned weights, or for ``nado`` log q, so that
    decoding, perplexity and evaluation treat all methods alike. ``dtype`` is by default what the model's file says for
    inference.
    """
    weights = method_weights(profile, model, method)
    return load_causal_lm(weights, dtype or inference_dtype(load_model(model).dtype)), load_tokenizer(weights)


def engine_of(weights: Path, wanted: str) -> str:
    """The engine for a method's checkpoint: vLLM does not know a NADO checkpoint, so that takes transformers.

    Raises:
        UserError: vLLM was asked for by name, for a NADO checkpoint.
    """
    from polydetox.attribute_control.head import NadoConfig

    if read_json(weights / "config.json").get("model_type") != NadoConfig.model_type:
        return wanted
    if wanted == "vllm":
        raise UserError("vLLM cannot decode with a NADO head; set engine: transformers (or auto) for the method nado")
    return "transformers"
