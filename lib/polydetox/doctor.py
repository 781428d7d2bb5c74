"""``polydetox doctor``: what is installed and usable here, and what each missing part needs."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec

from polydetox.core.errors import UserError
from polydetox.quarto import find_quarto, version, why_none

# What is more to do for an extra than `pip install`.
_REMEDIES = {"": "make the environment again", "gpu": "pip install --no-deps -r requirements-gpu.txt"}


def report() -> str:
    """The whole report as text, one line a finding."""
    from polydetox.generation import choose_engine
    from polydetox.scoring import available

    vllm = "" if find_spec("vllm") else "; vllm is not installed"
    machine = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    lines = [f"{machine}, {os.cpu_count()} CPU cores", "", "Packages", *_packages()]
    lines += ["", "Usable here", _accelerator(), _line(True, "generation", f"auto uses {choose_engine('auto')}{vllm}")]
    lines += [_quarto(), *(_line(not why, f"scorer {name}", why or "usable") for name, why in available().items())]
    return "\n".join(lines)


def _line(good: bool, name: str, text: str) -> str:
    return f"  {'yes' if good else ' no'}  {name}: {text}"


def _packages() -> list[str]:
    """What pyproject.toml asks for, a line for the dependencies and one for each extra."""
    found: dict[str, dict[str, str]] = {}
    for text in metadata.requires("polydetox") or []:
        name, extra = re.findall(r"^[\w.-]+", text)[0], "".join(re.findall("extra == ['\"](.+?)['\"]", text))
        versions = found.setdefault(extra, {})
        versions[name] = ""
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    lines = []
    for extra, versions in found.items():
        missing = ", ".join(name for name, version in versions.items() if not version)
        remedy = _REMEDIES.get(extra, f"pip install 'polydetox[{extra}]'")
        known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        text = f"{missing} missing; to get it: {remedy}" if missing else known
        lines.append(_line(not missing, f"extra {extra}" if extra else "needed", text))
    return lines


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return _line(True, "GPU", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    return _line(False, "GPU", "none found; small models run on the CPU, the paper's need a GPU")


def _quarto() -> str:
    try:
        found = find_quarto()
    except UserError as error:
        return _line(False, "Quarto", str(error))
    if found is None:
        return _line(False, "Quarto", f"the report is rendered as a preview: {why_none()}")
    known = version(found)
    return _line(bool(known), f"Quarto {known}".strip(), found + ("" if known else " does not start"))
