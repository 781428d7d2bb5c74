"""Which causal language models this project works with, and which way of computing is exact for one.

Most decoders keep each layer's keys and values, so that prompts can be padded, and what they share read once. A
recurrent state (Mamba, RWKV, linear attention) takes up padding, and not every class goes on from it by several tokens.
What a model's class can do is not listed here but tried out, on a few tokens, against texts that are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polydetox.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from polydetox.core.params import ModelFile


def check_decoder(configuration: PreTrainedConfig, name: str | Path) -> None:
    """Refuse what is no causal language model, by its configuration alone."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind, reason = configuration.model_type, ""
    if configuration.is_encoder_decoder:
        reason = "an encoder-decoder, which does not continue a prompt"
    elif type(configuration) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = "of no causal language model that the installed transformers knows"
    elif type(configuration) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(configuration, "is_decoder", False):
        reason = "an encoder, whose predictions depend on the text that follows"
    if reason:
        raise UserError(f"{name}: model type {kind!r} is {reason}; give a causal language model (decoder)")


def check_mergeable(adapter: Path) -> None:
    """Refuse an adapter that changes no weights (prompt and prefix tuning), which no plain checkpoint can stand for."""
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    try:
        kind = str(PeftConfig.from_pretrained(str(adapter)).peft_type).removeprefix("PeftType.")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{adapter / 'adapter_config.json'}: no adapter that PEFT knows ({error})") from None
    tuners: dict[Any, type] = PEFT_TYPE_TO_TUNER_MAPPING  # whose keys are names as well
    tuner = tuners.get(kind)
    if not (isinstance(tuner, type) and issubclass(tuner, BaseTuner)):
        raise UserError(
            f"{adapter.name}: an adapter of type {kind} changes no weights and cannot be merged; "
            "give one that does, such as LoRA, or a whole checkpoint"
        )


def listed_configuration(model: ModelFile) -> PreTrainedConfig | None:
    """The configuration of a listed model, as far as it can be had without loading the model.

    A Hub model's comes from the cache, or from the Hub where that is reached; None elsewhere and for a package.
    """
    from transformers import AutoConfig

    if model.use == "package":
        return None
    source, options = (model.hub, {"revision": model.revision}) if model.use == "hub" else (model.path, {})
    if model.use == "path":
        source = str(Path(str(source)).expanduser())
        if not (Path(source) / "config.json").is_file():
            raise UserError(f"model {model.name!r}: path {source}: no config.json there, so it is not a checkpoint")
    try:
        return AutoConfig.from_pretrained(str(source), **options)
    except OSError:  # not in the cache, and no network, no such repository, or no access: the download says which
        return None
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {model.name!r}: the installed transformers does not know it ({reason})") from None


def keeps_keys_and_values(cache: Any) -> bool:
    """Whether a cache holds each layer's keys and values and nothing else, so that its rows can be repeated."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    # A class of its own holds more than its layers tell (MiniMax's), unless it says otherwise.
    known = type(cache) is DynamicCache or getattr(cache, "keys_and_values", False)
    return known and all(type(layer) in plain for layer in cache.layers)


def next_logits(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    """The logits after every token of one text (tokens, vocabulary), float32, read whole and without a cache."""
    import torch

    row = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].float()


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """How far two next-token distributions are apart at most: total variation, from logits (..., vocabulary)."""
    distance = 0.5 * (left.float().softmax(dim=-1) - right.float().softmax(dim=-1)).abs().sum(dim=-1)
    return float(distance.max())


def first_exact(model: PreTrainedModel, what: str, ways: Mapping[str, Callable[[], float]], ids: Sequence[int]) -> str:
    """The name of the first way of computing whose results are those of texts read one by one.

    Each way tries itself on a few tokens and returns the largest difference, of probabilities or in nats. In 16 bits,
    where rounding differs by a percent or more, the first that is about as near as any is taken.

    Raises:
        UserError: no way is exact, or what the model says after the beginning of ``ids`` depends on the rest.
    """
    import torch

    whole = model.dtype == torch.float32
    name, kind = model.config.name_or_path or type(model).__name__, model.config.model_type
    half = len(ids) // 2
    if not difference(next_logits(model, ids)[:half], next_logits(model, ids[:half])) <= (1e-3 if whole else 0.25):
        raise UserError(
            f"{name}: what a {kind!r} model predicts depends on the text that follows, so that it can neither be "
            "sampled from nor score a text; give a causal language model (decoder)"
        )
    reasons, found = [], dict[str, float]()
    for way, trial in ways.items():
        try:
            found[way] = trial()
        except Exception as error:  # whatever a class does with what it was not made for
            reasons.append(f"{way}: {type(error).__name__}")
            continue
        if found[way] <= (1e-3 if whole else 0.05):
            break
        reasons.append(f"{way}: off by {found[way]:.2g}")
    else:
        if found and not whole:
            way = next(way for way, value in found.items() if value <= 2 * min(found.values()))
        else:
            raise UserError(f"{name}: {what} with model type {kind!r} is not exact ({'; '.join(reasons)})")
    if way != next(iter(ways)):
        print(f"{kind}: {what} {way}, which is slower ({'; '.join(reasons)})")
    return way
