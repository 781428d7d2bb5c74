"""A batch of stage notebooks on a tiny model: the plain kernel against the forking one, in notebooks a minute.

Languages x {base, dpo} x {generate, evaluate, retrieval}, run as the workflow runs them, two side by side. The forking
kernel's time includes the start of its server. Since a plain notebook takes many times as long, `--languages` and
`--plain` say for how many languages each kernel runs; rates are compared. For each stage it prints the seconds of a
notebook: those of its work, from the opening of the stage to its end, and those before it, for processes and imports.
The last line is the ratio of the rates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

TARGET = 5


def prepare(folder: Path, languages: list[str]) -> Path:
    """A checkout with a tiny model, and the same weights once more as its tuned variant."""
    from tiny import make_checkout, tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tiny_model("llama", len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    checkout = make_checkout(folder / "checkout", folder / "model", languages=languages, trim=None)
    merged = checkout / "runs/tiny/tiny/dpo/merge"
    merged.mkdir(parents=True)
    (merged / "weights").symlink_to(folder / "model")
    (merged / "manifest.json").write_text('{"output_sha256": "tiny"}')
    return checkout


STAGES = ("generate", "evaluate", "retrieval")


def run(kernel: str, checkout: Path, languages: list[str]) -> tuple[int, float]:
    """Notebooks, and the wall seconds of all, one stage after the other; prints where they went."""
    environment = os.environ | {
        "POLYDETOX_ROOT": str(checkout), "POLYDETOX_KERNEL": kernel, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def one(stage: str, variant: str, language: str) -> None:
        from polydetox.params import load_profile, stage_parameters

        values = stage_parameters(stage, load_profile("tiny"), "tiny", variant=variant, lang=language)
        folder = f"runs/tiny/tiny/{variant}/{stage}/{language}"
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "polydetox", "execute", f"notebooks/{stage}.ipynb", f"{folder}/notebook.ipynb",
             "--profile", "tiny", "--parameters", json.dumps(values | {"output_folder": folder})],
            cwd=checkout, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        work = json.loads((checkout / folder / "manifest.json").read_text())["wall_seconds"]
        spent[stage].append((time.perf_counter() - begun, work))

    begun = time.perf_counter()
    for stage in STAGES:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(one, stage, variant, language) for variant in ("base", "dpo") for language in languages]
            for job in jobs:
                job.result()
    seconds = time.perf_counter() - begun
    for stage, rows in spent.items():
        whole, work = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        print(
            f"{kernel:10} {stage:10} {whole:6.2f} s a notebook: {work:5.2f} work, {whole - work:5.2f} everything else"
        )
    return 2 * len(STAGES) * len(languages), seconds


def main() -> int:
    from polydetox import kernel
    from polydetox.kernel import spec
    from polydetox.languages import LANGUAGES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, default=17, help="languages on the forking kernel (17)")
    parser.add_argument("--plain", type=int, default=17, help="languages on the plain kernel (17)")
    options = parser.parse_args()
    rates = {}
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        checkout = prepare(folder, list(LANGUAGES))
        spec.install(folder)
        os.environ |= {"JUPYTER_PATH": str(folder / "share" / "jupyter"), "XDG_RUNTIME_DIR": str(folder)}
        os.environ["POLYDETOX_ROOT"] = str(checkout)
        try:
            for kernel_name, count in (("polydetox", options.languages), ("python3", options.plain)):
                number, seconds = run(kernel_name, checkout, list(LANGUAGES)[:count])
                rates[kernel_name] = 60 * number / seconds
                print(f"{kernel_name:10} {number} notebooks in {seconds:.1f} s: {rates[kernel_name]:.1f} a minute",
                      flush=True)  # fmt: skip
        finally:
            kernel.stop(now=True)
    ratio = rates["polydetox"] / rates["python3"]
    print(f"ratio {ratio:.1f} (target {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
