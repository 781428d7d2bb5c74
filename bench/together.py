"""All languages of a model scored by one job against a job a language, in CPU seconds.

Both score the same tables with the embedded scorer and a judge of mT5's architecture (random weights, `--width` sets
its size), as the stages `score` and `evaluate` do: a job a language builds the scorer and the judge each time, the job
of all languages once. Imports and kernels, which a job a language pays as well, are left out. The tables are small (5
continuations of each of `--texts` prompts), so this measures the loading; it prints what loading and reading a language
take apart from each other. The values of both ways are compared. The last line is the ratio.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from polydetox import paths
from polydetox.languages import LANGUAGES
from polydetox.metrics.scores import Scoring
from polydetox.params import ScoreParameters
from polydetox.scoring import e5
from tiny import TEXTS, make_checkout, tiny_model, tiny_tokenizer

TARGET = 1.5


def make_judge(folder: Path, width: int) -> float:
    """Save an mT5 of random weights; returns how many it has."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(0)
    judge = MT5ForConditionalGeneration(
        MT5Config(vocab_size=32_000, d_model=width, d_ff=2 * width, num_layers=8, num_heads=width // 64)
    ).to(torch.bfloat16)
    judge.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(weight.numel() for weight in judge.parameters())


def table(language: str, texts: int) -> pd.DataFrame:
    """Continuations, other ones for every language."""
    rows = [(f"{language}-{number}", TEXTS[number % len(TEXTS)], sample, f" {language} {number} {sample} words to read")
            for number in range(texts) for sample in range(5)]  # fmt: skip
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "sample", "continuation"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, default=17, help="languages (17)")
    parser.add_argument("--texts", type=int, default=2, help="prompts a language (2)")
    parser.add_argument("--width", type=int, default=512, help="width of the judge (512: 0.1 billion parameters)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        size = make_judge(folder / "judge", options.width)
        tokenizer = tiny_tokenizer()
        tiny_model("llama", len(tokenizer)).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        os.environ["POLYDETOX_ROOT"] = str(make_checkout(folder / "checkout", folder / "model", trim=None))
        paths.root.cache_clear()
        settings = ScoreParameters(profile="tiny", model="tiny", judge=str(folder / "judge"), second_scorer=None)
        tables = {language: table(language, options.texts) for language in list(LANGUAGES)[: options.languages]}
        Scoring(settings).values(table("warm", 1), "en", folder / "warm")  # first calls of the libraries
        seconds, found = {}, {}
        for way in ("apart", "together"):
            shutil.rmtree(paths.score_cache(), ignore_errors=True)
            e5.installed.cache_clear()
            begun = time.process_time()
            scoring = Scoring(settings)
            found[way] = {}
            for language, continuations in tables.items():
                if way == "apart":
                    e5.installed.cache_clear()
                    scoring = Scoring(settings)
                found[way][language] = scoring.values(continuations, language, folder / way / language)
            seconds[way] = time.process_time() - begun
            print(f"{way:9} {seconds[way]:6.1f} CPU s for {len(tables)} languages", flush=True)
        for language in tables:
            pd.testing.assert_frame_equal(found["apart"][language], found["together"][language])
    ratio = seconds["apart"] / seconds["together"]
    loading = (seconds["apart"] - seconds["together"]) / (len(tables) - 1)
    reading = (seconds["together"] - loading) / len(tables)
    print(f"equal scores; a judge of {size / 1e9:.2f} billion parameters: {loading:.1f} CPU s to load it and the "
          f"scorer, {reading:.1f} to read a language")  # fmt: skip
    print(f"ratio {ratio:.1f} (target {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
