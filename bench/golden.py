"""Golden numbers: what two runs of the same profile computed, compared table by table.

    python bench/golden.py run FOLDER         # runs the tiny profile and a small one on Gemma, from this checkout
    python bench/golden.py compare OLD NEW    # two folders of `runs/`: every table that either has
    python bench/golden.py compare OLD NEW --within 1e-6

A refactoring keeps every number; this shows that it did. Tables are found by what they are of and not by where they
lie: the part of a path that names a language becomes a column, so that one table a language and one table of all
languages compare as equal. Times, paths, hashes and versions are skipped. What a run wrote is toxic text in part: keep
it out of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from polydetox.core.languages import LANGUAGES

CHECKOUT = Path(__file__).resolve().parents[1]
# Differ from run to run, or say where something lies.
NOT_NUMBERS = ("seconds", "time", "sha256", "versions", "path", "folder", "source", "cpu", "memory", "per_second")

SMALL_GEMMA = {
    "title": "Golden numbers on Gemma 3 270M",
    "models": ["gemma-3-270m"],
    "languages": ["de", "en", "zh"],
    "prompts": {"source": "project", "limit": 8},
    "trim": {"words_per_language": 500, "expected_tokens": 5000},
    "pairs": {"on-policy": {"n": 8, "margin": 0.3, "pairs_per_prompt": 2}},
    "variants": {"dpo": {"pairs": "on-policy"}},
    "dpo": {"learning_rate": 2e-6, "warmup_steps": 2, "max_steps": 8, "eval_steps": 4, "held_out_share": 0.1},
    "generate": {"n": 5},
    "evaluate": {"perplexity_samples": 3, "bootstrap_samples": 200},
    "agreement": {"scorers": ["embedded", "lexicon"], "bootstrap_samples": 200},
    "mechanism": {
        "probe": {"texts_per_language": 30, "learning_rate": 1e-3, "weight_decay": 3.0, "standardise": True},
        "value_vectors": {}, "activations": {},
        "intervene": {"prompt_limit": 4, "offsets": [0.0, -2.0], "unit": "rms", "neutral_offset": 4.0},
    },
    "capability": {"suites": {"everyday": {"tasks": ["everyday_en", "everyday_de"], "limit": 8}}},
    "alignment": {"retrieval": {"sentences": "project", "limit": 16}, "transfer": {"bootstrap_samples": 200}},
    "control": {
        "languages": ["de", "en"],
        "corpus": {"source": "model", "n": 6, "rows_per_domain": 60},
        "regularise": {"iterations": 1, "steps": 4, "batch_size": 8, "max_length": 48, "learning_rate": 5e-5,
                       "warmup_steps": 1, "head": "tied", "samples": 64, "max_new_tokens": 12},
        "constrained_decode": {"n": 2},
        "attribute_eval": {"suites": {"commonsense": {"tasks": ["commonsense"], "limit": 8}}, "bootstrap_samples": 200},
        "algorithms": {"regularised": {"algorithm": "regularised"}},
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="run the tiny profile and the small one on Gemma")
    running.add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="compare two folders of runs")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    comparing.add_argument("--within", type=float, default=0.0, help="largest difference of a number (default: none)")
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run(arguments.folder)
    return compare(tables(arguments.old), tables(arguments.new), arguments.within)


def run(folder: Path) -> int:
    """Run both profiles in a checkout made in ``folder``, whose results then lie in ``folder/checkout/runs``."""
    sys.path.insert(0, str(CHECKOUT / "tests"))
    from tiny import make_checkout, tiny_model, tiny_tokenizer

    tokenizer, checkpoint = tiny_tokenizer(), folder / "tiny-model"
    tiny_model("llama", len(tokenizer)).save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    checkout = make_checkout(folder / "checkout", checkpoint)
    model = CHECKOUT / "params/models/gemma-3-270m.yaml"
    (checkout / "params/models" / model.name).write_bytes(model.read_bytes())
    (checkout / "params/profiles/golden.yaml").write_text(yaml.safe_dump(SMALL_GEMMA))
    environment = {name: value for name, value in os.environ.items() if name != "POLYDETOX_RUNS"}
    for profile in ("tiny", "golden"):
        command = [sys.executable, "-m", "polydetox", "run", "--profile", profile]
        done = subprocess.run(command, cwd=checkout, env=environment | {"POLYDETOX_ROOT": str(checkout)})
        if done.returncode:
            return done.returncode
    return 0


def tables(runs: Path) -> dict[str, pd.DataFrame]:
    """Every table and every file of metrics below a folder of runs, by what it is of."""
    found: dict[str, list[pd.DataFrame]] = {}
    for file in sorted(runs.rglob("*")):
        if file.suffix not in (".parquet", ".json") or file.name == "manifest.json" or not kept(file.relative_to(runs)):
            continue
        named, language = without_language(file.relative_to(runs))
        table = pd.read_parquet(file) if file.suffix == ".parquet" else flat(json.loads(file.read_text("utf-8")))
        if language and "language" not in table:
            table = table.assign(language=language)
        found.setdefault(named, []).append(table)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def kept(file: Path) -> bool:
    """Whether a file holds results: no weights and their settings, no cache, no rendered page."""
    return not {"weights", "cache", "site", "book", "logs", "push", "failed", "parts"} & set(file.parts)


def without_language(file: Path) -> tuple[str, str]:
    """A path without the part that names a language, and that language."""
    languages = [part for part in file.parts if part in LANGUAGES]
    parts = [part for part in file.parts if part not in LANGUAGES]
    return "/".join(parts), languages[0] if languages else ""


def flat(content: Any) -> pd.DataFrame:
    """The leaves of a JSON file, a row each."""

    def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{name}.{key}" if name else key)
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                yield from leaves(inner, f"{name}[{number}]")
        else:
            yield name, value

    rows = [(name, value) for name, value in leaves(content, "") if not any(word in name for word in NOT_NUMBERS)]
    table = pd.DataFrame(rows, columns=["key", "value"]).astype({"value": object})
    # One file of all languages, `{"languages": {"de": ...}}`, is as many files of one.
    inside = table["key"].str.extract(r"^languages\.([a-z]+)\.(.*)$")
    if inside[0].notna().any():
        table["language"] = inside[0].fillna("")
        table["key"] = inside[1].fillna(table["key"])
    return table


def compare(old: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame], within: float) -> int:
    """Print a line for each table that differs, and how many agree; 1 where any differs."""
    different = 0
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            said = "only in the " + ("old run" if name in old else "new run")
        else:
            said = difference(old[name], new[name], within)
        if said:
            different += 1
            print(f"{name}: {said}")
    values = sum(table.size for name, table in old.items() if name in new)
    print(f"{len(old.keys() & new.keys()) - different} tables agree, {different} differ ({values:,} values compared)")
    return int(different > 0)


def difference(old: pd.DataFrame, new: pd.DataFrame, within: float) -> str:
    """How two tables differ; empty where they do not. The order of rows does not count."""
    columns = [column for column in old if not any(word in column for word in NOT_NUMBERS)]
    if missing := [column for column in columns if column not in new]:
        return f"no column {', '.join(missing)}"
    if "key" in columns:  # figures by name: those that only one side has are named, the others compared
        old, new = (
            table.assign(language=table.get("language", "")).set_index(["language", "key"]) for table in (old, new)
        )
        apart = sorted({key for _, key in old.index.symmetric_difference(new.index)})
        both = old.index.intersection(new.index)
        worst = max((distance(old.at[at, "value"], new.at[at, "value"]) for at in both), default=0.0)
        said = [f"differs by up to {worst:g}"] * (worst > within) + [
            f"on one side alone: {', '.join(apart[:6])}"
        ] * bool(apart)
        return "; ".join(said)
    if len(old) != len(new):
        return f"{len(new)} rows instead of {len(old)}"
    keys = [column for column in columns if not pd.api.types.is_float_dtype(old[column])]
    first, second = (table[columns].sort_values(keys, key=lambda c: c.astype(str), kind="stable", ignore_index=True)
                     for table in (old, new))  # fmt: skip
    worst = 0.0
    for column in columns:
        for before, after in zip(first[column], second[column], strict=True):
            apart = distance(before, after)
            if apart > within:
                worst = max(worst, apart)
    return f"differs by up to {worst:g}" if worst else ""


def distance(before: Any, after: Any) -> float:
    """How far two values are apart: 0 for the same, infinity where one is no number."""
    if isinstance(before, (list, tuple, np.ndarray)) and isinstance(after, (list, tuple, np.ndarray)):
        pairs = zip(before, after, strict=False)
        return np.inf if len(before) != len(after) else max((distance(a, b) for a, b in pairs), default=0.0)
    numbers = (int, float, np.integer, np.floating)
    if isinstance(before, numbers) and isinstance(after, numbers) and not isinstance(before, bool):
        if np.isnan(before) or np.isnan(after):
            return 0.0 if np.isnan(before) and np.isnan(after) else np.inf
        return abs(float(before) - float(after))
    return 0.0 if str(before) == str(after) else np.inf


if __name__ == "__main__":
    raise SystemExit(main())
