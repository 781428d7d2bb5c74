"""The `transformers` engine against `model.generate(num_return_sequences=25)`, in CPU seconds on one thread.

Random-weight models of three families (hidden size 256, 4 layers), each with a small and with a large vocabulary;
the same prompts of 10 to 60 tokens in the same length-sorted batches, 25 samples of 20 tokens each
at temperature 0.9 and top-p 0.8. The two alternate, and each ratio is that of the medians; the last line is the worst
of all. `--weights FOLDER` measures a real checkpoint instead.
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
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from polydetox.generation.engines import Sampling, TransformersEngine
from tiny import TEXTS, tiny_tokenizer

TARGET = 1.8
PROMPTS_A_BATCH = 10  # 250 continuations side by side, the stage's default


def model_of(family: str, vocabulary: int):
    """A random-weight model whose next-token distributions are about as sharp as a trained model's."""
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    configuration = {
        "gpt2": GPT2Config(n_positions=256, n_embd=256, n_layer=4, n_head=4, **tokens),
        "bloom": BloomConfig(hidden_size=256, n_layer=4, n_head=4, **tokens),
        "llama": LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
                             max_position_embeddings=256, tie_word_embeddings=False, **tokens),
    }[family]  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration).eval()
    # A layer's output has about unit variance: logits with a standard deviation of 3 have nuclei of tens of tokens.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3 / (0.02 * 256**0.5))
    return model


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of one call in this process, all its threads together."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(engine: TransformersEngine, prompts: list[str], repeats: int) -> tuple[float, float]:
    """Median CPU seconds of the engine and of ``generate``; greedy tokens must be equal."""
    model, tokenizer = engine.model, engine.tokenizer
    batches = [prompts[start : start + PROMPTS_A_BATCH] for start in range(0, len(prompts), PROMPTS_A_BATCH)]

    def ours() -> None:
        for number, batch in enumerate(batches):
            engine.sample([f"{number} {prompt}" for prompt in range(len(batch))], batch, Sampling())

    def published() -> None:
        for batch in batches:
            inputs = tokenizer(batch, return_tensors="pt", padding=True)
            model.generate(**inputs, do_sample=True, temperature=0.9, top_p=0.8, top_k=0, max_new_tokens=20,
                           num_return_sequences=25, pad_token_id=0)  # fmt: skip

    if model.dtype == torch.float32:  # in bfloat16 two orders of summation may prefer different tokens
        greedy = engine.sample(["a", "b"], prompts[:2], Sampling(n=1, temperature=0.0))
        inputs = tokenizer(prompts[:2], return_tensors="pt", padding=True)
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=20, pad_token_id=0)
        for (row,), tokens in zip(greedy, expected[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            assert row.tokens == tokens[: len(row.tokens)], "greedy tokens differ"
    ours(), published()  # warm up
    times = [(cpu_seconds(ours), cpu_seconds(published)) for _ in range(repeats)]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return mine, theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="a checkpoint to measure instead of the random-weight models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = random.Random(0)
    text = " ".join(TEXTS * 4)
    prompts = []
    for _ in range(options.prompts):
        start = generator.randrange(200)
        prompts.append(text[start : start + generator.randrange(30, 300)].strip())
    prompts.sort(key=len)  # for both, as the engine's batches are

    ratios = []
    if options.weights:
        mine, theirs = measure(TransformersEngine(options.weights, "bfloat16"), prompts, options.repeats)
        print(f"{options.weights.parent.name}: {mine:.2f} s against {theirs:.2f} s, ratio {theirs / mine:.2f}")
        ratios.append(theirs / mine)
    else:
        tokenizer = tiny_tokenizer()
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        print(f"{len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, 25 continuations of 20 tokens each")
        for vocabulary in (1_000, 32_000):
            for family in ("llama", "bloom", "gpt2"):
                with tempfile.TemporaryDirectory() as folder:
                    model_of(family, vocabulary).save_pretrained(folder)
                    tokenizer.save_pretrained(folder)
                    engine = TransformersEngine(Path(folder), "float32")
                mine, theirs = measure(engine, prompts, options.repeats)
                ratios.append(theirs / mine)
                print(f"{family:6} vocabulary {vocabulary:6}: {mine:6.2f} s against {theirs:6.2f} s, "
                      f"ratio {ratios[-1]:.2f}", flush=True)  # fmt: skip
    print(f"ratio {min(ratios):.2f} (target {TARGET})")
    return 0 if min(ratios) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
