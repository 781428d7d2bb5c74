"""What Snakemake prints while a profile runs (``snakemake --logger polydetox``): progress, and why a job failed."""

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

    has_filter = has_formatter = True
    writes_to_file = needs_rulegraph = False
    writes_to_stream = property(lambda self: not self.common_settings.dryrun)

    def __post_init__(self) -> None:
        self.jobs: dict[int, tuple[str, float]] = {}  # title, and when it was started or submitted
        self.said = {""}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.writes_to_stream and (line := self._line(record)):
                print(line, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        given, text = record.__dict__, record.getMessage().strip()
        stamp = time.strftime("%H:%M:%S")
        match given.get("event"):
            case LogEvent.JOB_INFO:
                self.jobs[given["jobid"]] = given["rule_msg"] or given["rule_name"], time.time()
            case LogEvent.JOB_FINISHED:
                title, began = self.jobs[given["job_id"]]
                return f"{stamp}  done   {title} ({time.time() - began:.0f} s)"
            case LogEvent.JOB_ERROR:
                if (failure := self._failure(given)) not in self.said:  # by a job that was tried again
                    self.said.add(failure)
                    return f"{stamp}  failed {failure}"
            case LogEvent.PROGRESS:
                done, total = given["done"], given["total"]
                return f"{done} of {total} steps ({100 * done // max(total, 1)}%) done"
            case None | LogEvent.ERROR:
                if (again := _AGAIN.match(text)) and int(again[1]) in self.jobs:
                    return f"{stamp}  again  {self.jobs[int(again[1])][0]}"
                if _WANTED.match(text) or (record.levelno >= logging.WARNING and not _REPEATED.match(text)):
                    return text
        return ""

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
                said += [error.strip()] if found else [] if said else [f"see {log}"]
        return f"{title}: " + "\n  ".join(said) if said else ""
