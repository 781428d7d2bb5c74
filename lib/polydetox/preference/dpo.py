"""Direct preference optimisation with TRL (Rafailov et al. 2023, eq. 7), and merging its adapters."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from polydetox.core import paths
from polydetox.core.artifacts import atomic_folder, input_hash, library_versions, resume_key
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import device, load_causal_lm, load_tokenizer, provenance

if TYPE_CHECKING:
    from polydetox.preference.trainer import PairTrainer

LOG_COLUMNS = ["step", "split", "metric", "value"]
_METRICS = {"loss": "loss", "rewards/margins": "reward_margin", "rewards/accuracies": "reward_accuracy"}


def dpo_loss(
    policy_chosen: Float[torch.Tensor, " pairs"],
    policy_rejected: Float[torch.Tensor, " pairs"],
    reference_chosen: Float[torch.Tensor, " pairs"],
    reference_rejected: Float[torch.Tensor, " pairs"],
    beta: float,
) -> Float[torch.Tensor, " pairs"]:
    """The loss that TRL minimises, from sequence log-probabilities (Rafailov et al. 2023, eq. 7).

    -log sigmoid(beta * ((log p_chosen - log ref_chosen) - (log p_rejected - log ref_rejected))). The tests hold the
    trainer's reported loss against it.
    """
    from torch.nn.functional import logsigmoid

    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -logsigmoid(beta * margin)


def simpo_loss(
    chosen: Float[torch.Tensor, " pairs"], rejected: Float[torch.Tensor, " pairs"], beta: float, gamma_beta_ratio: float
) -> Float[torch.Tensor, " pairs"]:
    """SimPO, from the mean log-probability of a completion's tokens (Meng, Xia and Chen 2024, eq. 6).

    -log sigmoid(beta * (log p_chosen / |chosen| - log p_rejected / |rejected|) - gamma), with the target margin gamma
    as a multiple of beta. It needs no reference model.
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))


def truncate_prompts(pairs: pd.DataFrame, tokenizer: Any, max_prompt_length: int) -> pd.DataFrame:
    """Keep the last ``max_prompt_length`` tokens of each prompt; TRL no longer has such a limit of its own."""

    def shorten(prompt: str) -> str:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return prompt if len(ids) <= max_prompt_length else tokenizer.decode(ids[-max_prompt_length:]).lstrip()

    return pairs.assign(prompt=pairs["prompt"].map(shorten))


def bookkeeping(
    weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Arguments of TRL's configuration that say nothing of the method: what a stopped training resumes from, and what
    suits the device.

    TRL's own checkpoints are kept in ``output_dir``, below ``folder/checkpoints``, while training runs. Reference
    log-probabilities are computed beforehand where training goes over the pairs at least once: held-out pairs are
    evaluated many times, and another run finds them in the cache.
    """
    _check_evaluated(settings, len(train))
    checkpoints = _checkpoint_folder(weights, train, held_out, settings, folder)
    on_cpu = device().type == "cpu"
    return {
        "output_dir": str(checkpoints),
        "eval_on_start": last_checkpoint(checkpoints) is None,
        "restore_callback_states_from_checkpoint": True,  # the patience of early stopping counts on
        "save_strategy": "steps",
        "save_steps": settings.eval_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "precompute_ref_log_probs": _sees_all_pairs(settings, len(train)),
        # TRL's defaults suit a GPU. On a CPU, bfloat16 is emulated unless it has the instructions, and recomputing
        # activations only costs time. Weights stay in float32 either way: the matrix products alone are mixed.
        "use_cpu": on_cpu,
        "bf16": mixed_precision(),
        "gradient_checkpointing": not on_cpu and settings.method != "full",
        "dataloader_pin_memory": not on_cpu,
    }


def keep_best(trainer: PairTrainer, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Save what ``trainer`` holds after training, the checkpoint with the lowest held-out loss, as ``folder/weights``.

    That is a whole checkpoint after full fine-tuning, else an adapter. TRL's own checkpoints are removed. Returns the
    training log (a row a step, split and metric) and the figures of the best step.
    """
    log = training_log(trainer.state.log_history)
    best = _best_step(log)
    with atomic_folder(folder / "weights") as temporary:
        trainer.save_model(str(temporary))
        assert trainer.processing_class is not None
        trainer.processing_class.save_pretrained(temporary)
        (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nothing here reads
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return log, {
        "steps": trainer.state.global_step,
        "best_step": best,
        "held_out_loss": float(_held_out(log, "loss")[best]),
        "held_out_accuracy": float(_held_out(log, "reward_accuracy")[best]),
    }


def reference_cache(weights: Path, settings: Settings) -> Path:
    """The file of reference log-probabilities for this model, in the precision in which training computes them."""
    versions = library_versions()
    depends_on = [
        input_hash(provenance(weights)), settings.method, settings.max_length, device().type, mixed_precision(),
        *(versions[name] for name in ("torch", "transformers", "trl")),
    ]  # fmt: skip
    return paths.reference_cache(resume_key(depends_on))


def _check_evaluated(settings: Settings, pairs: int) -> None:
    """The best checkpoint is chosen by the held-out loss, so there must be an evaluation before the end."""
    a_step = settings.batch_size * settings.gradient_accumulation_steps
    steps = settings.max_steps or math.ceil(pairs / a_step) * math.ceil(settings.epochs)
    if settings.eval_steps > steps:
        raise UserError(
            f"dpo: eval_steps {settings.eval_steps} is more than the {steps} steps of this training; lower eval_steps"
        )


def _checkpoint_folder(
    weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Settings, folder: Path
) -> Path:
    """TRL's checkpoints, in a folder named by all that they depend on: other settings start anew."""
    depends_on = {
        "weights": input_hash(provenance(weights)),
        "train": train.to_json(),
        "held_out": held_out.to_json(),
        "settings": settings.model_dump(exclude={"output_folder"}),
    }
    key = resume_key(depends_on)
    for stale in (folder / "checkpoints").glob("*"):
        if stale.name != key:
            shutil.rmtree(stale)
    return folder / "checkpoints" / key


def mixed_precision() -> bool:
    """Whether this device multiplies bfloat16 faster than float32."""
    if device().type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device().type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def _sees_all_pairs(settings: Settings, pairs: int) -> bool:
    """Whether training goes over all pairs; computing the reference beforehand then costs no more than on the way."""
    if settings.max_steps is None:
        return settings.epochs >= 1
    return settings.max_steps * settings.batch_size * settings.gradient_accumulation_steps >= pairs


def load_trainable(weights: Path, method: str) -> PreTrainedModel:
    """The model to train: in float32 for full fine-tuning, in four bits for an adapter of ``qlora``."""
    if method == "full":
        # A small learning rate changes weights by less than bfloat16 can hold.
        return load_causal_lm(weights, torch.float32)
    options: dict[str, Any] = {}
    if method == "qlora":
        _check_four_bit()
        options = {"quantization_config": four_bit(), "device_map": {"": 0}}
    return load_causal_lm(weights, torch.float32 if device().type == "cpu" else torch.bfloat16, **options)


def _check_four_bit() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            "method 'qlora' needs bitsandbytes: pip install --no-deps -r requirements-gpu.txt, or method: lora"
        ) from None
    # On a CPU it computes, but for evaluation it packs the weights in a way that has no gradient.
    if not torch.cuda.is_available():
        raise UserError("method 'qlora' needs an NVIDIA GPU; use method: lora")


def four_bit() -> Any:
    """NF4 with double quantisation, multiplied in bfloat16 (Dettmers et al. 2023); needs bitsandbytes."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip


def linear_layers(model: PreTrainedModel, *, embeddings: bool) -> list[str]:
    """The names of every linear layer but the output layer, and of the input embedding where asked.

    The published code adapts the output layer of Llama and Aya as well; TRL refuses that, since it multiplies by the
    layer's own weight, so that its adapter would never be trained. A name is the last part of the module paths, as
    PEFT matches them, where all modules of that name are meant, else the whole path. GPT-2's ``Conv1D`` counts as
    linear.
    """
    from transformers.pytorch_utils import Conv1D

    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    # Mamba's kernels read the weight of this layer itself, past an adapter, so that PEFT refuses it.
    unseen = {"out_proj"} if model.config.model_type in _MAMBA else set()
    meant: dict[str, bool] = {}  # by path
    for name, module in model.named_modules():
        # Linear, Linear4bit and Linear8bitLt; a subclass with another forward is no matrix product that can be adapted,
        # but for Falcon's, which only rounds otherwise.
        linear = isinstance(module, Conv1D) or type(module).__name__.startswith(("Linear", "FalconLinear"))
        wanted = (linear and module is not output) or (embeddings and module is embedding)
        meant[name] = wanted and name.rsplit(".", 1)[-1] not in unseen
    others = {name.rsplit(".", 1)[-1] for name, wanted in meant.items() if not wanted}
    leaves = {name: name.rsplit(".", 1)[-1] for name, wanted in meant.items() if wanted}
    return sorted({name if leaf in others else leaf for name, leaf in leaves.items()})


_MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")


def last_checkpoint(checkpoints: str | Path) -> str | None:
    """The newest whole checkpoint; one that was being written when the run stopped is removed."""
    whole = []
    for folder in Path(checkpoints).glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text("utf-8"))
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(folder)
            continue
        whole.append((int(folder.name.rsplit("-", 1)[1]), folder))
    return str(max(whole)[1]) if whole else None


def training_log(history: list[dict[str, Any]]) -> pd.DataFrame:
    """TRL's log as a table in long form: ``step, split`` (train or held_out), ``metric, value``."""
    rows = []
    for entry in history:
        held_out = "eval_loss" in entry
        for key, metric in _METRICS.items():
            value = entry.get(f"eval_{key}" if held_out else key)
            if value is not None:
                rows.append((entry["step"], "held_out" if held_out else "train", metric, float(value)))
    return pd.DataFrame(rows, columns=LOG_COLUMNS).drop_duplicates(["step", "split", "metric"], keep="last")


def _held_out(log: pd.DataFrame, metric: str) -> pd.Series:
    rows = log[(log["split"] == "held_out") & (log["metric"] == metric) & (log["step"] > 0)]
    return rows.set_index("step")["value"]


def _best_step(log: pd.DataFrame) -> int:
    losses = _held_out(log, "loss").dropna()
    if losses.empty:
        raise UserError("dpo: the training diverged, its held-out loss is not a number; lower learning_rate")
    return int(losses.idxmin())


# --- merging ----------------------------------------------------------------------------------------------------


def merge_adapter(base: Path, tuned: Path, folder: Path, probe: str) -> float:
    """Write one plain checkpoint of a tuned model to ``folder``.

    A whole checkpoint is linked as it is; an adapter is merged into the weights of ``base``, in float32, since a
    merge in bfloat16 would round the adapter's small changes away. Returns the largest difference between the logits
    of base plus adapter and those of the merged checkpoint read back, on the text ``probe`` (0.0 where nothing
    was merged).
    """
    if not (tuned / "adapter_config.json").is_file():
        with atomic_folder(folder) as temporary:
            for source in sorted(path for path in tuned.rglob("*") if path.is_file()):
                target = temporary / source.relative_to(tuned)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source.resolve(), target)
                except OSError:  # another file system, or one without hard links
                    shutil.copy2(source, target)
            if not (temporary / "tokenizer_config.json").is_file():  # a published checkpoint of weights alone
                load_tokenizer(base).save_pretrained(temporary)
        return 0.0
    from peft import PeftModel

    check_mergeable(tuned)
    tokenizer = load_tokenizer(base)
    inputs = tokenizer(probe, return_tensors="pt")
    on_cpu = {"device_map": {"": "cpu"}}  # in float32 a large model may not fit a GPU
    plain = load_causal_lm(base, torch.float32, **on_cpu)
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    try:
        adapted = PeftModel.from_pretrained(plain, str(tuned)).eval()
    except (RuntimeError, ValueError) as error:  # shapes or names of layers that differ
        reason = str(error).strip().splitlines()[-1].strip()[:120]
        raise UserError(f"{tuned.name}: the adapter does not fit the base model {base.name} ({reason})") from None
    _check_loaded(adapted, tuned)
    with torch.inference_mode():
        before = adapted(**inputs).logits
    if tied:
        _untie(plain)
    merged = adapted.merge_and_unload()
    if tied:
        same = torch.equal(merged.get_output_embeddings().weight, merged.get_input_embeddings().weight)
        merged.config.tie_word_embeddings = merged.config.get_text_config().tie_word_embeddings = same
        if same:
            merged.tie_weights()
    with atomic_folder(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    del plain, adapted, merged
    with torch.inference_mode():
        after = load_causal_lm(folder, torch.float32, **on_cpu)(**inputs).logits
    difference = float((after - before).abs().max())
    scale = float(before.abs().max())
    if difference > 1e-3 * max(scale, 1.0):
        shutil.rmtree(folder)
        raise RuntimeError(f"the merged checkpoint's logits differ from the adapter's by {difference:.3g}")
    return difference


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


def _check_loaded(adapted: Any, adapter: Path) -> None:
    """PEFT says nothing of tensors for which it made no layer, as with some tied output layers."""
    from peft import get_peft_model_state_dict, load_peft_weights

    held = {name for name in load_peft_weights(str(adapter), device="cpu") if "lora_" in name}
    if lost := sorted(held - set(get_peft_model_state_dict(adapted))):
        raise UserError(
            f"{adapter.name}: PEFT does not load {len(lost)} tensors of this adapter (as {lost[0]}); save it again "
            "without ensure_weight_tying, or give a whole checkpoint"
        )


def _untie(model: PreTrainedModel) -> None:
    """Give the output layer a weight of its own, below whatever adapters are on it.

    An adapter of the embedding or of the output layer changes one of them; merged into a weight that both share, it
    would change the other as well.
    """
    output: Any = model.get_output_embeddings()
    while True:
        inner = getattr(output, "base_layer", None) or getattr(output, "original_module", None)
        if inner is None:
            break
        output = inner
    output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
