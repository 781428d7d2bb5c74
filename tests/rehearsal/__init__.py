"""A dress rehearsal of the papers' profiles: their settings, models of their architectures, data in their layouts.

`python -m tests.rehearsal` (or `make rehearsal`) makes a checkout of its own in which `paper` and `paper-control` are
what they are here but for amounts, with random models and small data sets in place of those that are downloaded, and
runs both to the rendered site. It needs no network. Where there is a GPU with vLLM and bitsandbytes, it trains in four
bits and samples with vLLM as the profiles say; elsewhere it takes LoRA and the transformers engine. Whatever a profile
or a model file says more is rehearsed, too, since nothing is written down a second time.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PROFILES = ("paper", "paper-control")
PROMPTS = 2  # evaluation prompts a language
# Without a GPU random models need neither it nor the memory that their files ask for, so that jobs need not take turns.
SIDE_BY_SIDE = ["--resources", "gpu=16", "mem_mb=4000000"]

# Amounts: all that a rehearsal changes in a profile wherever it runs. The others follow from the data, of which there
# is little.
_FEW = {"iterations": 2, "samples": 16, "rl_steps": 2}
AMOUNTS: dict[str, dict[str, Any]] = {
    "paper": {"dpo": {"max_steps": 2, "eval_steps": 1, "warmup_steps": 1}},
    "paper-control": {
        "prompts": {"limit": PROMPTS},
        "control": {"regularise": _FEW | {"steps": 2}, "jigsaw_classify": {"regularise": _FEW}},
    },
}


def has_gpu() -> bool:
    """Whether vLLM and four-bit training are usable here."""
    import torch

    return torch.cuda.is_available() and bool(find_spec("vllm") and find_spec("bitsandbytes"))


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them changed."""
    found = copy.deepcopy(settings)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else copy.deepcopy(value)
    return found


def rehearsed_profile(name: str, settings: dict[str, Any], gpu: bool) -> dict[str, Any]:
    """A profile as it is rehearsed: with fewer steps, and without vLLM where there is no GPU."""
    settings = merged(settings, AMOUNTS[name])
    if not gpu and settings.get("generate", {}).get("engine") == "vllm":
        settings["generate"]["engine"] = "transformers"
    return settings


def rehearsed_model(settings: dict[str, Any], gpu: bool) -> dict[str, Any]:
    """A model file as it is rehearsed: without four-bit weights where there is no GPU."""
    settings = copy.deepcopy(settings)
    if not gpu and settings.get("dpo", {}).get("method") == "qlora":
        settings["dpo"]["method"] = "lora"
    return settings


def make_checkout(place: Path, gpu: bool, **fewer: dict[str, Any]) -> Path:
    """This checkout with the rehearsed profiles and model files; ``fewer`` changes a profile further, by its name."""
    folder = place / "checkout"
    shutil.rmtree(folder / "params", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("notebooks", "book", "lib", "rules", "profiles", "Snakefile", "_quarto.yml", "CITATION.cff"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(CHECKOUT / name)
    shutil.copytree(CHECKOUT / "params", folder / "params")
    for file in (folder / "params/models").glob("*.yaml"):
        _write(file, rehearsed_model(yaml.safe_load(file.read_text("utf-8")), gpu))
    for name in PROFILES:
        file = folder / f"params/profiles/{name}.yaml"
        _write(file, merged(rehearsed_profile(name, yaml.safe_load(file.read_text("utf-8")), gpu), fewer.get(name, {})))
    return folder


def _write(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(settings, allow_unicode=True, sort_keys=False), "utf-8")


def prepare(
    place: Path, profiles: Sequence[str] = PROFILES, gpu: bool = False, **fewer: dict[str, Any]
) -> dict[str, str]:
    """Everything that a rehearsal reads, below one folder; returns the environment in which to run it."""
    from .checkpoints import make_all
    from .texts import make_folders, make_tasks

    checkout = make_checkout(place, gpu, **fewer)
    home = place / "huggingface"
    make_all(home / "hub", *_repositories(checkout, profiles))
    make_tasks(home / "datasets")
    # What the reader has set for real runs would lead to real models and data, or into their artefacts.
    theirs = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "POLYDETOX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return kept | make_folders(place / "data") | {
        "POLYDETOX_ROOT": str(checkout), "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def _repositories(checkout: Path, profiles: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str | None]]:
    """The model files and the ready scorers, with their revisions, that some profiles name anywhere."""
    from polydetox.scoring.huggingface import READY

    named = {word for name in profiles for word in _words(yaml.safe_load(
        (checkout / f"params/profiles/{name}.yaml").read_text("utf-8")))}  # fmt: skip
    models = [yaml.safe_load(file.read_text("utf-8")) for file in sorted((checkout / "params/models").glob("*.yaml"))
              if file.stem in named]  # fmt: skip
    return models, {READY[name].source: READY[name].revision for name in sorted(named & set(READY))}


def _words(settings: Any) -> list[str]:
    if isinstance(settings, dict | list):
        inner = settings.values() if isinstance(settings, dict) else settings
        return [word for value in inner for word in _words(value)]
    return [settings] if isinstance(settings, str) else []
