"""`make paper` of this checkout's commit against an earlier commit, with the machine free and under load.

Each commit is cloned into a folder of its own and its environment made there, which is not measured. Then `make paper`
runs from nothing to the rendered report: wall time, and how many CPU seconds and how much memory more the whole machine
used, since not every kernel is a child of the command that waits for it. Under load, as many processes as `--load` says
count in a loop beside it. The last line is the worst ratio of measure to target (target 1): half of the
earlier commit's CPU seconds, 0.6 of its wall time, 6 GB of memory, and 3 times its own free time under load.

It takes some hours; the machine must have no other work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"CPU seconds": 0.5, "wall time": 0.6, "memory, GB": 6.0, "wall time under load": 3.0}


@dataclass(frozen=True)
class Measured:
    """One `make paper`: seconds on the clock, CPU seconds, gigabytes."""

    wall: float
    cpu: float
    memory: float


def clone(commit: str, folder: Path) -> Path:
    """A clone of this repository at a commit, with its environment."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", "--detach", commit], check=True)
    subprocess.run(["make", "--no-print-directory", "env", "CONDA="], cwd=folder, check=True)
    return folder


def cpu() -> float:
    """CPU seconds of the machine since it started, without those in which it was idle or waited for a disk."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))


def memory() -> float:
    """Gigabytes of the machine that are not available."""
    found = psutil.virtual_memory()
    return (found.total - found.available) / 1e9


@contextmanager
def busy(processes: int):
    """So many processes that count in a loop."""
    with ExitStack() as stack:
        for _ in range(processes):
            one = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(one.kill)
        yield


def paper(folder: Path, profile: str, load: int = 0) -> Measured:
    """Run `make paper` in a clone from nothing."""
    subprocess.run(["make", "--no-print-directory", "clean"], cwd=folder, check=True)
    command = ["make", "--no-print-directory", "paper", "CONDA=", f"PROFILE={profile}"]
    environment = os.environ | {"QUARTO": ""}  # the same renderer for both
    over, before, largest = threading.Event(), memory(), [0.0]

    def watch() -> None:
        while not over.wait(1.0):
            largest[0] = max(largest[0], memory() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    with busy(load):
        begun, used = time.monotonic(), cpu()
        watcher.start()
        status = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL).returncode
        wall, used = time.monotonic() - begun, cpu() - used
        over.set()
        watcher.join()
    if status:
        sys.exit(f"`{' '.join(command)}` failed in {folder}: it says why there")
    return Measured(wall, used, largest[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="9fe6a4c", help="an earlier commit")
    parser.add_argument("--profile", default="offline")
    parser.add_argument("--load", type=int, default=8, help="processes beside it, when under load")
    parser.add_argument("--folder", type=Path, help="where the clones go; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        new, old = clone("HEAD", Path(folder) / "new"), clone(arguments.against, Path(folder) / "old")
        before, after = paper(old, arguments.profile), paper(new, arguments.profile)
        print(f"{'':24}{'before':>10}{'after':>10}")
        for name, unit in (("wall", "s"), ("cpu", "CPU s"), ("memory", "GB")):
            print(f"{f'{name}, {unit}':24}{getattr(before, name):10.1f}{getattr(after, name):10.1f}")
        loaded = paper(new, arguments.profile, arguments.load)
        print(f"{f'wall under load {arguments.load}, s':24}{'':10}{loaded.wall:10.1f}")
    measured = (after.cpu / before.cpu, after.wall / before.wall, after.memory, loaded.wall / after.wall)
    for value, (name, target) in zip(measured, TARGETS.items(), strict=True):
        print(f"{name:24}{value:10.2f}  target {target}")
    worst = max(value / target for value, target in zip(measured, TARGETS.values(), strict=True))
    print(f"ratio {worst:.2f} (target 1)")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
