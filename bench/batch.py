"""A batch of stage notebooks on a tiny model: the plain kernel against the forking one, in notebooks a minute.

Languages x {base, dpo} x {generate, evaluate}, run as the workflow runs them, two side by side, each kernel
in a checkout of its own, so that neither finds what the other has computed. The kernels take turns, a language each, so
that whatever else the machine does meets both. The forking kernel's time includes the start of its server. For each
stage it prints the CPU seconds of a notebook, and how long the stage was open on the clock; for each kernel notebooks a
minute on the clock, and CPU seconds a notebook. The last line is the ratio of CPU seconds, which other work on the
machine changes little; the ratio on the clock is printed before it.

Since a plain notebook takes many times as long, `--plain N` runs the plain kernel in N languages only, all stages and
variants of each; rates are compared, and the line says so.
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
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

TARGET = 5
STAGES = ("generate", "evaluate")
VARIANTS = ("base", "dpo")


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


def cpu_of_process(process: int) -> tuple[float, float]:
    """CPU seconds of a process itself, and of the children that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = list(map(int, fields[11:15]))
    return sum(ticks[:2]) / os.sysconf("SC_CLK_TCK"), sum(ticks[2:]) / os.sysconf("SC_CLK_TCK")


def cpu_of_servers() -> tuple[float, float]:
    """CPU seconds of the kernels' servers, which are those of their start, and of their kernels."""
    from polydetox.kernel import client

    rows = [cpu_of_process(answer["process"]) for answer in client.status()]
    return sum(own for own, _ in rows), sum(kernels for _, kernels in rows)


@dataclass
class Side:
    """One kernel, and what its notebooks took."""

    kernel: str
    checkout: Path
    seconds: float = 0.0  # on the clock
    start: float = 0.0  # CPU seconds of the server itself, once a batch
    work: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # of a stage, on the clock
    cpu_of_stage: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def notebooks(self) -> int:
        return sum(map(len, self.work.values()))

    @property
    def cpu(self) -> float:
        """CPU seconds of all."""
        return self.start + sum(self.cpu_of_stage.values())

    def run(self, languages: list[str]) -> None:
        """All stages of some languages, stage by stage, two notebooks side by side."""
        for stage in STAGES:
            # Children that were waited for, and the servers, which are nobody's children.
            before = sum(os.times()[2:4]), cpu_of_servers() if self.kernel == "polydetox" else (0.0, 0.0)
            begun = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                jobs = [pool.submit(self._one, stage, variant, language)
                        for language in languages for variant in VARIANTS]  # fmt: skip
                for job in jobs:
                    self.work[stage].append(job.result())
            self.seconds += time.perf_counter() - begun
            spent = sum(os.times()[2:4]) - before[0]
            if self.kernel == "polydetox":
                own, kernels = cpu_of_servers()
                spent += kernels - before[1][1]
                self.start += own - before[1][0]
            self.cpu_of_stage[stage] += spent

    def _one(self, stage: str, variant: str, language: str) -> float:
        """Execute one notebook; the seconds of its work."""
        environment = os.environ | {
            "POLYDETOX_ROOT": str(self.checkout), "POLYDETOX_KERNEL": self.kernel, "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        folder = f"runs/tiny/tiny/{variant}/{stage}/{language}"
        parameters = json.dumps(PARAMETERS[stage, variant, language] | {"output_folder": folder})
        done = subprocess.run(
            [sys.executable, "-m", "polydetox", "execute", f"notebooks/{stage}.ipynb", f"{folder}/notebook.ipynb",
             "--profile", "tiny", "--parameters", parameters],
            cwd=self.checkout, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        if "using the plain kernel" in done.stderr:
            raise RuntimeError(done.stderr)
        return json.loads((self.checkout / folder / "manifest.json").read_text())["wall_seconds"]

    def report(self) -> None:
        for stage in STAGES:
            count = len(self.work[stage])
            cpu, work = self.cpu_of_stage[stage] / count, sum(self.work[stage]) / count
            print(f"{self.kernel:10} {stage:10} {cpu:6.2f} CPU s a notebook (of {count}; stage open for {work:.2f} s)")
        if self.start:
            print(f"{self.kernel:10} {self.start:.1f} CPU s for the start of the server, once a batch")
        rate, cpu = 60 * self.notebooks / self.seconds, self.cpu / self.notebooks
        print(
            f"{self.kernel:10} {self.notebooks} notebooks in {self.seconds:.0f} s: {rate:.1f} a minute, {cpu:.2f} CPU s"
        )


PARAMETERS: dict[tuple[str, str, str], dict] = {}


def main() -> int:
    from polydetox import kernel, paths
    from polydetox.kernel import spec
    from polydetox.languages import LANGUAGES
    from polydetox.params import load_profile, stage_parameters

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--languages", type=int, default=17, help="languages on the forking kernel (17)")
    parser.add_argument("--plain", type=int, default=17, help="languages on the plain kernel (17)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polydetox-bench-") as name:
        folder = Path(name)
        sides = []
        for kernel_name in ("polydetox", "python3"):
            (folder / kernel_name).mkdir()
            sides.append(Side(kernel_name, prepare(folder / kernel_name, list(LANGUAGES))))
        spec.install(folder)
        os.environ |= {"JUPYTER_PATH": str(folder / "share" / "jupyter"), "XDG_RUNTIME_DIR": str(folder)}
        os.environ["POLYDETOX_ROOT"] = str(sides[0].checkout)
        # On a machine that is busy otherwise the server may take longer to start than it is waited for by default.
        os.environ.setdefault("POLYDETOX_KERNEL_WAIT", "55")
        os.environ["POLYDETOX_KERNEL_IDLE"] = "3600"  # it waits while it is the plain kernel's turn
        paths.root.cache_clear()
        profile = load_profile("tiny")
        languages = list(LANGUAGES)
        for stage in STAGES:
            for variant in VARIANTS:
                for language in languages:
                    PARAMETERS[stage, variant, language] = stage_parameters(
                        stage, profile, "tiny", variant=variant, lang=language
                    )
        try:
            for position, language in enumerate(languages):
                for side, count in zip(sides, (options.languages, options.plain), strict=True):
                    if position < count:
                        side.run([language])
        finally:
            kernel.stop(now=True)
    for side in sides:
        side.report()
    forking, plain = sides
    if options.plain != options.languages:
        print(f"rates compared: {plain.notebooks} plain notebooks stand for {forking.notebooks}, all stages alike")
    clock = (plain.seconds / plain.notebooks) / (forking.seconds / forking.notebooks)
    ratio = (plain.cpu / plain.notebooks) / (forking.cpu / forking.notebooks)
    print(f"on the clock {clock:.1f}")
    print(f"ratio {ratio:.1f} (target {TARGET})")
    return 0 if ratio >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
