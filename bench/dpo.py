"""DPO training as the stage runs it against a plain PyTorch loop on the same batches, in steps a CPU second.

A random-weight Llama of about a million parameters and pairs of very different lengths, batches of 4, RMSprop, gradient
clipping, bfloat16 where the device has it, and reference log-probabilities computed beforehand in both. Evaluation and
checkpoints are left out of both. The last line is the loop's time divided by ours; the target allows TRL 1.3 times the
loop's time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from transformers import AutoModelForCausalLM, EarlyStoppingCallback, LlamaConfig, TrainerCallback

from notebook_cells import make_trainer
from polydetox.core.parameters import Settings, checked
from polydetox.models.checkpoints import load_causal_lm
from polydetox.training.shared import mixed_precision
from tiny import TEXTS, tiny_tokenizer

TARGET = 0.77


def pairs_of(count: int) -> pd.DataFrame:
    """Pairs whose texts have from about 10 to about 150 tokens."""
    generator = random.Random(0)
    words = " ".join(TEXTS).split()

    def words_of(least: int, most: int) -> str:
        return " ".join(generator.choices(words, k=generator.randint(least, most)))

    rows = [(words_of(2, 12), " " + words_of(1, 25), " " + words_of(1, 25)) for _ in range(count)]
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


class Clock(TrainerCallback):
    """CPU seconds from the end of the first step, whose set-up is no step's, to the end of training."""

    def on_step_end(self, arguments, state, control, **_):
        if state.global_step == 1:
            self.begun = time.process_time()

    def on_train_end(self, arguments, state, control, **_):
        self.seconds = time.process_time() - self.begun


def bare_trainer(weights: Path, pairs: pd.DataFrame, settings: Settings, folder: Path):
    """The stage's trainer without evaluations and checkpoints."""
    trainer = make_trainer(weights, pairs, pairs.head(4), settings, folder)
    trainer.args.eval_strategy = trainer.args.save_strategy = "no"
    trainer.args.load_best_model_at_end = trainer.args.eval_on_start = False
    trainer.pop_callback(EarlyStoppingCallback)  # it needs evaluations
    return trainer


def ours(weights: Path, pairs: pd.DataFrame, settings: Settings, folder: Path) -> tuple[float, list]:
    """CPU seconds of all steps but the first, and the batches of these steps."""
    trainer = bare_trainer(weights, pairs, settings, folder)
    clock = Clock()
    trainer.add_callback(clock)
    batches: list = []
    step = trainer.training_step

    def keep(model, inputs, *rest):
        batches.append(inputs)
        return step(model, inputs, *rest)

    trainer.training_step = keep
    trainer.train()
    return clock.seconds, batches[1:]


def plain(weights: Path, batches: list, settings: Settings) -> float:
    """CPU seconds of a loop over the same batches."""
    model = load_causal_lm(weights, torch.float32).train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=settings.learning_rate, alpha=0.99, eps=1e-8,
                                    weight_decay=settings.weight_decay)  # fmt: skip
    begun = time.process_time()
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision()):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        per_token = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        chosen, rejected = (per_token * batch["completion_mask"][:, 1:]).sum(-1).chunk(2)
        margin = (chosen - batch["ref_chosen_logps"]) - (rejected - batch["ref_rejected_logps"])
        loss = -torch.nn.functional.logsigmoid(settings.beta * margin).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = checked("dpo", epochs=1, eval_steps=1, warmup_steps=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["POLYDETOX_RUNS"] = str(folder / "runs")
        tokenizer = tiny_tokenizer()
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=352, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2,
        )).save_pretrained(folder / "model")  # fmt: skip
        tokenizer.save_pretrained(folder / "model")
        times = []
        for number in range(options.repeats):
            mine, batches = ours(folder / "model", pairs_of(options.pairs), settings, folder / str(number))
            theirs = plain(folder / "model", batches, settings)
            times.append((mine, theirs))
            print(f"{len(batches)} steps: {len(batches) / mine:.1f} a second, plain loop {len(batches) / theirs:.1f}")
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"ratio {theirs / mine:.2f} (target {TARGET})")
    return 0 if theirs / mine >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
