"""What the regulariser costs: both schedules against plain fine-tuning, in CPU seconds of one run.

All three train the same model for as many steps on the same rows. A random-weight Llama with a vocabulary that takes a
good part of its work, as in a small pretrained model; adaptive regulariser, so that half of the rows have a target.

How two devices are accounted for on one machine: head and model of an iteration are run one after the other, each on
one thread, and the CPU seconds of each whole job are taken (loading, sampling, asking the oracle, training, measuring
on held-out rows, writing). On two devices the jobs of an iteration would run at the same time, so an iteration lasts as
long as the longer of its two; the first one, whose model needs its head, lasts as long as both together. So
`parallel = head_1 + model_1 + sum over t > 1 of max(head_t, model_t)`, `sequential = sum of all jobs`, and
`plain = sum of its model jobs`. Waiting, copies between devices and the start of processes are not counted.

The last line is plain divided by parallel; the target allows the parallel schedule 1.3 times plain fine-tuning's time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from transformers import AutoModelForCausalLM, LlamaConfig

from notebook_cells import packaged_prose, some_cells
from polydetox.core.artifacts import Stage
from polydetox.core.parameters import checked
from tiny import make_checkout, tiny_tokenizer

TARGET = 0.77
VOCABULARY = 8_000


def make_model(folder: Path, texts: list[str]) -> None:
    """About seven million parameters, two of them the output layer's."""
    tokenizer = tiny_tokenizer().train_new_from_iterator(texts, VOCABULARY)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


def make_corpus(texts: list[str]) -> pd.DataFrame:
    """Rows of both domains, all of them prose: what they say does not matter to the clock."""
    rows = [(number, " ".join(text.split()[:4]), text, ("toxic", "neutral")[number % 2], 0.1,
             "held_out" if number % 20 < 2 else "train") for number, text in enumerate(texts)]  # fmt: skip
    return pd.DataFrame(rows, columns=["row", "prompt", "text", "domain", "toxicity", "split"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="of the model in an iteration (40)")
    parser.add_argument("--samples", type=int, default=256, help="an iteration (256)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = packaged_prose(48).tolist()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", texts)
        checkout = make_checkout(folder / "checkout", folder / "model")
        os.environ |= {"POLYDETOX_ROOT": str(checkout), "POLYDETOX_RUNS": str(folder / "runs")}
        make_corpus(texts[:400]).to_parquet(folder / "corpus.parquet")
        common = {
            "checkpoint": str(folder / "model"), "corpus": str(folder / "corpus.parquet"),
            "dtype": "float32", "iterations": options.iterations, "steps": options.steps,
            "samples": options.samples, "max_new_tokens": 20, "max_length": 64, "head": "tied", "head_epochs": 2,
            "scorer": "lexicon", "regulariser_weight_neutral": 0.0, "devices": 1,
        }  # fmt: skip
        methods = {
            "plain": {"algorithm": "plain"}, "sequential": {"schedule": "sequential"},
            "parallel": {"schedule": "parallel"},
        }  # fmt: skip
        for repeat in range(options.repeats):
            seconds = {}
            for method, changes in methods.items():
                settings = checked("regularise", **common, **changes)
                stage = Stage("regularise", folder / f"{method}-{repeat}", {})
                metrics = some_cells("regularise", settings, stage)["metrics"]
                seconds[method] = metrics["two_device_cpu_seconds"]
                head, model = metrics["head_cpu_seconds"], metrics["model_cpu_seconds"]
                print(f"{method:10} head {head:6.1f}, model {model:6.1f}, accounted {seconds[method]:6.1f} CPU seconds",
                      flush=True)  # fmt: skip
            ratios.append({method: seconds["plain"] / seconds[method] for method in ("sequential", "parallel")})
            print(f"plain / sequential {ratios[-1]['sequential']:.2f}, plain / parallel {ratios[-1]['parallel']:.2f}",
                  flush=True)  # fmt: skip
    ratio = statistics.median(row["parallel"] for row in ratios)
    print(f"ratio {ratio:.2f} (target {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
