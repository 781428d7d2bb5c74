"""A run whose stages are jobs of Slurm: their names, and those that an earlier run has left in the queue."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

from polydetox.core import paths
from polydetox.core.errors import UserError

# Jobs that have just been cancelled take some seconds to end.
_GRACE = 15.0


def check(executor: str) -> None:
    """Refuse a cluster where its plugin for Snakemake is missing, or does not quote a folder's name for the shell."""
    for folder in (paths.root(), paths.runs(), Path(sys.executable)):
        if found := re.search(r"[\"'`$\\]", str(folder)):
            raise UserError(f"{folder}: {found[0]} in a path, which Snakemake's plugins for clusters do not pass on; "
                            "use a folder of another name")  # fmt: skip
    if executor == "slurm" and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        raise UserError("--executor slurm: Snakemake's plugin for it is not installed (README.md, 'On a cluster')")


def job_prefix(profile: str) -> str:
    """What the names of a profile's jobs begin with: its name, and a checksum of the folder that they write to."""
    place = hashlib.sha256(str(paths.profile_run(profile)).encode()).hexdigest()[:8]
    return f"polydetox-{re.sub('[^A-Za-z0-9_-]', '-', profile)[:30]}-{place}"


def refuse_while_queued(profile: str, grace: float = _GRACE) -> None:
    """Raise ``UserError`` that names the jobs of an earlier run in the queue, which would write the same files."""
    deadline = time.monotonic() + grace
    while queued := _queued(job_prefix(profile)):
        if time.monotonic() > deadline:
            said = "; ".join(f"{number} {what}" for number, what in queued.items())
            raise UserError(
                f"profile {profile!r}: jobs of an earlier run are in the queue and write the same files ({said}); "
                f"wait until they have ended, or `scancel {' '.join(queued)}`, and give the command again"
            )
        time.sleep(1.0)


def _queued(prefix: str) -> dict[str, str]:
    """The queued and running jobs whose name begins with ``prefix``, by number: what they do, and in which state."""
    command = ["squeue", "--me", "--noheader", "--format=%A|%j|%T|%N|%k"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        raise UserError("--executor slurm: no answer from squeue; run this where jobs can be submitted") from None
    if done.returncode:
        raise UserError(f"squeue: {done.stderr.strip() or done.returncode}; run this where jobs can be submitted")
    rows = [line.split("|", 4) for line in done.stdout.splitlines()]
    return {
        number: f"{comment.removeprefix('rule_')}, {state.lower()}{node and f' on {node}'}"
        # A comment may have a line break, and squeue may warn.
        for number, name, state, node, comment in (row for row in rows if len(row) == 5)
        if name.startswith(f"{prefix}_")
    }
