"""What Snakemake prints while a profile runs (``snakemake --logger polydetox``): progress, and why a job failed.

A stage prints to a log of its own, here or on a cluster; of one that fails the last error is printed.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

# Of the messages without an event: what a person who waits wants to know, and what repeats another message.
_WANTED = re.compile(r"Terminating|Will exit after")
_AGAIN = re.compile(r"Trying to restart job (\d+)")
_REPEATED = re.compile(r"\s*(RuleException|CalledProcessError|Exiting because|WorkflowError:\s+At least one job)")


class LogHandler(LogHandlerBase):
    """Prints one line for what matters, and nothing for the rest. A dry run is printed by Snakemake itself."""

    def __post_init__(self) -> None:
        self.jobs: dict[int, tuple[str, float]] = {}  # title, and when it was started or submitted
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = "" if self.common_settings.dryrun else self._line(record)
            if line:
                print(line, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        given = record.__dict__
        event = given.get("event")
        if event == LogEvent.JOB_INFO:
            self.jobs[given["jobid"]] = given["rule_msg"] or given["rule_name"], time.time()
            return ""
        if event == LogEvent.JOB_FINISHED:
            title, began = self.jobs[given["job_id"]]
            return self._stamped("done", f"{title} ({time.time() - began:.0f} s)")
        if event == LogEvent.JOB_ERROR:
            return self._failure(given)
        if event == LogEvent.PROGRESS:
            done, total = given["done"], given["total"]
            return f"{done} of {total} steps ({100 * done // max(total, 1)}%) done"
        if event not in (None, LogEvent.ERROR):
            return ""
        text = record.getMessage().strip()
        if (again := _AGAIN.match(text)) and int(again[1]) in self.jobs:
            return self._stamped("again", self.jobs[int(again[1])][0])
        wanted = record.levelno >= logging.WARNING and not _REPEATED.match(text)
        return text if wanted or _WANTED.match(text) else ""

    def _stamped(self, what: str, text: str) -> str:
        return f"{time.strftime('%H:%M:%S')}  {what:6} {text}"

    def _failure(self, given: dict) -> str:
        """Why a job failed: what the executor says, and the last error in the stage's own log."""
        title, began = self.jobs.get(given["jobid"], (given["rule_name"], 0.0))
        # The plugin for Slurm appends the whole command to the message of sbatch, and with squeue excuses itself.
        reason = re.split("sbatch call:|Detailed failure reason unavailable", given["rule_msg"] or "")[0]
        said = [" ".join(reason.split())] if reason else []
        for log in map(Path, given["log"]):
            if "slurm_logs" in log.parts:
                said[:1] = [f"{' '.join(said[:1])} (log: {log})"]
            elif log.is_file() and log.stat().st_mtime >= began - 1.0:
                _, found, error = log.read_text("utf-8", "replace").rpartition("polydetox: ")
                said.append(error.strip() if found else f"see {log}")
        text = f"{title}: " + "\n  ".join(said)
        if not said or text in self.said:  # a job that was tried again
            return ""
        self.said.add(text)
        return self._stamped("failed", text)

    @property
    def writes_to_stream(self) -> bool:
        return not self.common_settings.dryrun

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
