"""A notebook that imports torch, transformers, trl and peft: the kernel ``python3`` against the forking one.

Both run the same notebook through papermill, in turn. Prints the wall time of each run and what the first run pays for
starting the server; the last line is the ratio of the medians, and the exit status is 1 below the target.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill

from polydetox import kernel
from polydetox.kernel import spec

TARGET = 5

CELLS = (
    "import torch\n"
    "from peft import LoraConfig, get_peft_model\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig\n"
    "from trl import DPOConfig, DPOTrainer",
    "config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,\n"
    "                     num_attention_heads=2, num_key_value_heads=2)\n"
    "model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=2, task_type='CAUSAL_LM'))\n"
    "print(tuple(model(torch.arange(8)[None]).logits.shape))",
    "sizes = dict(line.split(':') for line in open('/proc/self/smaps_rollup').read().splitlines()[1:])\n"
    "print(' '.join(sizes[name].split()[0] for name in ('Rss', 'Pss', 'Private_Dirty')))",
)


def run(folder: Path, kernel_name: str) -> tuple[float, list[int]]:
    """Execute the notebook once; its wall seconds, and its resident, proportional and own memory in KiB."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": kernel_name, "display_name": kernel_name, "language": "python"}
    nbformat.write(notebook, folder / "in.ipynb")
    began = time.perf_counter()
    executed = papermill.execute_notebook(
        folder / "in.ipynb", folder / "out.ipynb", kernel_name=kernel_name, progress_bar=False
    )
    seconds = time.perf_counter() - began
    assert executed.cells[1].outputs[-1].text == "(1, 8, 64)\n"
    return seconds, [int(word) for word in executed.cells[2].outputs[-1].text.split()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs on each kernel after the first (5)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        spec.install(folder)
        os.environ["JUPYTER_PATH"] = str(folder / "share" / "jupyter")
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        os.environ.pop("POLYDETOX_KERNEL_PLAIN", None)
        try:
            cold, _ = run(folder, "polydetox")
            print(f"polydetox, with the server's start: {cold:.2f} s", flush=True)
            seconds: dict[str, list[float]] = {"python3": [], "polydetox": []}
            for _ in range(rounds):
                for kernel_name, taken in seconds.items():
                    wall, (resident, proportional, own) = run(folder, kernel_name)
                    taken.append(wall)
                    print(
                        f"{kernel_name:9}  {wall:6.2f} s   memory: resident {resident >> 10} MiB, "
                        f"proportional {proportional >> 10} MiB, own {own >> 10} MiB",
                        flush=True,
                    )
        finally:
            kernel.stop(now=True)
    medians = {kernel_name: statistics.median(taken) for kernel_name, taken in seconds.items()}
    print("medians: " + ", ".join(f"{kernel_name} {median:.2f} s" for kernel_name, median in medians.items()))
    ratio = medians["python3"] / medians["polydetox"]
    print(f"ratio {ratio:.1f} (target {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
