"""Where the seconds of a finished run went, from its manifests and executed notebooks.

`python bench/where.py [RUN_FOLDER]` (default `runs/offline`). For each stage: notebooks, the seconds that they took
from the first cell to the last, how many of these went by before the stage opened (imports and parameters), and the
seconds of the one cell in each that takes longest, which is the work itself. What is left is loading,
showing and writing. Then: from the first notebook's start to the last one's end on the clock, how many notebooks ran
side by side on average, and for how long none did (Snakemake's graph, starting processes, a pause between commands).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from polydetox.core.artifacts import MANIFEST
from polydetox.core.errors import UserError


def span_of(folder: Path) -> tuple[float, float] | None:
    """When a stage's notebook began and ended, in seconds since the epoch."""
    try:
        times = json.loads((folder / "notebook.ipynb").read_text("utf-8"))["metadata"]["papermill"]
        return tuple(datetime.fromisoformat(times[key]).timestamp() for key in ("start_time", "end_time"))
    except (FileNotFoundError, KeyError, TypeError):
        return None


def nothing_ran(spans: list[tuple[float, float]]) -> float:
    """The seconds between the first start and the last end in which no notebook ran."""
    total, until = 0.0, min(begin for begin, _ in spans)
    for begin, end in sorted(spans):
        total += max(0.0, begin - until)
        until = max(until, end)
    return total


def seconds_of(folder: Path) -> tuple[str, float, float, float] | None:
    """Stage, and its notebook's seconds: in all, before the stage opened, and of its longest cell."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    try:
        notebook = json.loads((folder / "notebook.ipynb").read_text("utf-8"))
    except FileNotFoundError:
        return None
    cells = [cell.get("metadata", {}).get("papermill", {}).get("duration") or 0.0 for cell in notebook["cells"]]
    total = notebook["metadata"].get("papermill", {}).get("duration") or sum(cells)
    return manifest["stage"], total, max(total - manifest["wall_seconds"], 0.0), max(cells, default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/offline"))
    folder = parser.parse_args().run
    stages: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for manifest in sorted(folder.rglob(MANIFEST)):
        found = seconds_of(manifest.parent)
        if found:
            stages[found[0]].append(found[1:])
    if not stages:
        raise UserError(f"{folder}: no finished stage there; name a folder of runs/")
    print(f"{'stage':20}{'notebooks':>10}{'seconds':>10}{'each':>8}{'opening':>9}{'work':>9}{'rest':>8}{'work %':>8}")
    everything = [0.0, 0.0, 0.0]
    for stage, rows in sorted(stages.items(), key=lambda item: -sum(row[0] for row in item[1])):
        total, opening, work = (sum(column) for column in zip(*rows, strict=True))
        everything = [sum(pair) for pair in zip(everything, (total, opening, work), strict=True)]
        print(f"{stage:20}{len(rows):10}{total:10.1f}{total / len(rows):8.1f}{opening:9.1f}{work:9.1f}"
              f"{total - opening - work:8.1f}{work / total:8.0%}")  # fmt: skip
    total, opening, work = everything
    print(f"{'all':20}{sum(map(len, stages.values())):10}{total:10.1f}{'':8}{opening:9.1f}{work:9.1f}"
          f"{total - opening - work:8.1f}{work / total:8.0%}")  # fmt: skip
    spans = [span for manifest in folder.rglob(MANIFEST) if (span := span_of(manifest.parent))]
    if spans:
        whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
        side_by_side = sum(end - begin for begin, end in spans) / whole
        print(f"\n{whole:.0f} s from first to last on the clock: {side_by_side:.2f} notebooks side by side on average, "
              f"none for {nothing_ran(spans):.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
