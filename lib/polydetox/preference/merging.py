"""One plain checkpoint of a tuned model: linked as it is, or an adapter on its base model, ready to be merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from polydetox.core.artifacts import atomic_folder, link_or_copy
from polydetox.core.errors import UserError
from polydetox.models.checkpoints import load_tokenizer


def link_checkpoint(tuned: Path, folder: Path, base: Path) -> None:
    """Link every file of a whole checkpoint into ``folder``, with the tokenizer of ``base`` where it has none."""
    with atomic_folder(folder) as temporary:
        for source in sorted(path for path in tuned.rglob("*") if path.is_file()):
            target = temporary / source.relative_to(tuned)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
        if not (temporary / "tokenizer_config.json").is_file():  # a published checkpoint of weights alone
            load_tokenizer(base).save_pretrained(temporary)


def with_adapter(plain: PreTrainedModel, adapter: Path) -> Any:
    """A base model with an adapter on it.

    PEFT says nothing of tensors for which it made no layer, as with some tied output layers; here they are an error.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    check_mergeable(adapter)
    try:
        adapted = PeftModel.from_pretrained(plain, str(adapter)).eval()
    except (RuntimeError, ValueError) as error:  # shapes or names of layers that differ
        reason = str(error).strip().splitlines()[-1].strip()[:120]
        base = Path(str(plain.name_or_path)).name
        raise UserError(f"{adapter.name}: the adapter does not fit the base model {base} ({reason})") from None
    held = {name for name in load_peft_weights(str(adapter), device="cpu") if "lora_" in name}
    if lost := sorted(held - set(get_peft_model_state_dict(adapted))):
        raise UserError(
            f"{adapter.name}: PEFT does not load {len(lost)} tensors of this adapter (as {lost[0]}); save it again "
            "without ensure_weight_tying, or give a whole checkpoint"
        )
    return adapted


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
