"""Reinforcement learning with the oracle as reward: TRL's RLOO (Ahmadian et al. 2024), KL to the untuned model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from polydetox.attribute_control.adapters import adapter_options
from polydetox.attribute_control.jobs import CORPUS, MODEL, held_out_losses
from polydetox.attribute_control.oracle import Oracle
from polydetox.attribute_control.rows import encode
from polydetox.core.artifacts import atomic_folder, read_parquet, write_json, write_parquet
from polydetox.core.parameters import Settings
from polydetox.models.checkpoints import device, load_causal_lm, load_tokenizer, on_one_device
from polydetox.preference.dpo import last_checkpoint, mixed_precision

if TYPE_CHECKING:
    from trl import RLOOConfig


def train_rl(settings: Settings, weights: Path, state: Path) -> None:
    """Train on the prompts of the corpus; writes ``state/01``. TRL's checkpoints are what a stopped run goes on from.

    The reward of a continuation is C: 1 while it satisfies the constraint, else 0, and 0 where the oracle has nothing
    to judge, so that silence earns nothing.
    """
    folder = state / "01"
    if (folder / MODEL).is_file():
        return
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed
    from trl import RLOOTrainer

    set_seed(settings.seed)
    began, cpu = time.perf_counter(), time.process_time()
    tokenizer = load_tokenizer(weights)
    corpus = read_parquet(state / CORPUS)
    rows = encode(tokenizer, corpus["prompt"], corpus["text"], corpus["weight"], settings.max_length)
    model = load_causal_lm(weights, torch.float32)
    if not (state / "untuned.json").is_file():
        write_json(
            state / "untuned.json", held_out_losses(model, rows, corpus, tokenizer.pad_token_id, settings.batch_size)
        )
    oracle = Oracle.of(settings)

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        satisfied = oracle.satisfied(oracle.toxicity(completions))
        return [0.0 if value != value else float(value) for value in satisfied]  # NaN: nothing to judge

    prompts = list(dict.fromkeys(corpus.loc[corpus["split"] == "train", "prompt"]))
    arguments = _arguments(settings, len(prompts), folder)
    # With an adapter the untuned model, from which the KL is taken, is the same one without it.
    adapter = adapter_options(model, settings) if settings.tuning == "lora" else None
    trainer = RLOOTrainer(model=model, reward_funcs=reward, args=arguments, processing_class=tokenizer,
                          train_dataset=Dataset.from_dict({"prompt": prompts}), peft_config=adapter)  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    trained = trainer.accelerator.unwrap_model(trainer.model)
    trained = (trained.merge_and_unload() if adapter else trained).eval()
    figures = held_out_losses(trained, rows, corpus, tokenizer.pad_token_id, settings.batch_size)
    with atomic_folder(folder / "weights") as temporary:
        trained.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    steps = pd.DataFrame([(1, entry["step"], name, float(entry[name])) for entry in log for name in ("reward", "kl")
                          if name in entry], columns=["iteration", "step", "metric", "value"])  # fmt: skip
    write_parquet(folder / "log.parquet", steps)
    quarter = steps[(steps["metric"] == "reward") & (steps["step"] > 0.75 * settings.rl_steps)]["value"]
    write_json(folder / MODEL, {
        "steps": trainer.state.global_step, "rejected": 1.0 - float(quarter.mean()), **figures,
        "seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu,
    })  # fmt: skip


def _arguments(settings: Settings, prompts: int, folder: Path) -> RLOOConfig:
    """TRL's options, for a corpus of so many prompts."""
    from trl import RLOOConfig

    on_cpu = device().type == "cpu"
    return on_one_device(RLOOConfig(
        output_dir=str(folder / "checkpoints"), max_steps=settings.rl_steps, learning_rate=settings.rl_learning_rate,
        lr_scheduler_type="constant_with_warmup", warmup_steps=min(settings.warmup_steps, settings.rl_steps),
        beta=settings.rl_beta, num_generations=settings.rl_generations,
        per_device_train_batch_size=min(settings.rl_prompts, prompts) * settings.rl_generations,
        max_completion_length=settings.max_new_tokens, max_grad_norm=settings.max_grad_norm, temperature=1.0, top_p=1.0,
        logging_steps=1, save_strategy="steps", save_steps=max(1, settings.rl_steps // settings.iterations),
        save_total_limit=1, seed=settings.seed, data_seed=settings.seed, use_cpu=on_cpu, bf16=mixed_precision(),
        gradient_checkpointing=not on_cpu, dataloader_pin_memory=not on_cpu, disable_tqdm=True, report_to="none",
    ))  # fmt: skip
