"""What Snakemake prints while a profile runs (``snakemake --logger polydetox``): progress, and why a job failed.

The stages report themselves where they run on this machine. Those on a cluster print to a log of their own, so that
their beginnings and ends, and what the executor says of a failure, are printed here.
"""

from __future__ import annotations

import logging
import re
import sys
import time

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

# Of the messages without an event: what a person who waits wants to know, and what repeats another message.
_WANTED = re.compile(r"Terminating|Will exit after")
_AGAIN = re.compile(r"Trying to restart job (\d+)")
_REPEATED = re.compile(r"\s*(RuleException|CalledProcessError|Exiting because|WorkflowError:\s+At least one job)")


class LogHandler(LogHandlerBase):
    """Prints one line for what matters, and nothing for the rest. A dry run is printed by Snakemake itself."""

    def __post_init__(self) -> None:
        self.titles: dict[int, str] = {}  # of the jobs that run elsewhere
        self.said: set[tuple[str, str]] = set()

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
            if not given["local"]:
                self.titles[given["jobid"]] = given["rule_msg"] or given["rule_name"]
            return ""
        if event == LogEvent.JOB_FINISHED:
            title = self.titles.get(given["job_id"])
            return f"{time.strftime('%H:%M:%S')}  done   {title}" if title else ""
        if event == LogEvent.JOB_ERROR:
            return self._failure(given)
        if event == LogEvent.PROGRESS:
            done, total = given["done"], given["total"]
            return f"{done} of {total} steps ({100 * done // max(total, 1)}%) done"
        if event not in (None, LogEvent.ERROR):
            return ""
        text = record.getMessage().strip()
        if (again := _AGAIN.match(text)) and int(again[1]) in self.titles:
            return f"{time.strftime('%H:%M:%S')}  again  {self.titles[int(again[1])]}"
        wanted = record.levelno >= logging.WARNING and not _REPEATED.match(text)
        return text if wanted or _WANTED.match(text) else ""

    def _failure(self, given: dict) -> str:
        """Why a job failed, by the executor; a stage on this machine has said it itself."""
        reason = given["rule_msg"]
        if not reason:
            return ""
        # The plugin for Slurm appends the whole command to the message of sbatch, and with squeue excuses itself.
        reason = " ".join(re.split("sbatch call:|Detailed failure reason unavailable", reason)[0].split())
        title = self.titles.get(given["jobid"], given["rule_name"])
        logs = [file for file in given["log"] if "slurm_logs" in file]
        if (title, reason) in self.said:  # a job that was tried again
            return ""
        self.said.add((title, reason))
        return f"{time.strftime('%H:%M:%S')}  failed {title}: {reason}" + (f" (log: {logs[0]})" if logs else "")

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
