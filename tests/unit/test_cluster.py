"""The parts of a run that matter on a cluster, each without one; tests/cluster/ runs them on a Slurm of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import yaml
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_polydetox import LogHandler

from polydetox import cli, cluster, execute
from polydetox.core.errors import UserError
from tiny import CHECKOUT


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Stands for Slurm's squeue: prints the lines that a test has written into a file."""
    (tmp_path / "bin").mkdir()
    queue = tmp_path / "queue"
    queue.write_text("")
    command = tmp_path / "bin" / "squeue"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {queue}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return queue


def test_jobs_of_an_earlier_run_are_named_before_others_are_submitted(checkout, squeue):
    prefix = cluster.job_prefix("tiny")
    squeue.write_text(
        f"12|{prefix}_c0ffee|RUNNING|n1|rule_dpo_wildcards_tiny_dpo\n"
        f"13|{prefix}_c0ffee|PENDING||rule_pairs\n"
        f"14|{cluster.job_prefix('other')}_c0ffee|RUNNING|n1|rule_dpo\n15|bash|RUNNING|n1|(null)\n"
    )
    with pytest.raises(UserError) as raised:
        cluster.refuse_while_queued("tiny", grace=0)
    said = str(raised.value)
    assert "(12 dpo_wildcards_tiny_dpo, running on n1; 13 pairs, pending)" in said and "`scancel 12 13`" in said
    assert "profile 'tiny'" in said and "\n" not in said
    assert "--me" in (squeue.parent / "asked").read_text()
    squeue.write_text("slurm_load_jobs: a warning\n14|bash|RUNNING|n1|a comment\nof two lines\n")
    cluster.refuse_while_queued("tiny", grace=0)


def test_jobs_are_found_by_the_folder_that_they_write_to(checkout, tmp_path, monkeypatch):
    """Two checkouts of one profile do not stop each other; any name of a profile makes one that the plugin takes."""
    here = cluster.job_prefix("tiny")
    monkeypatch.setenv("POLYDETOX_RUNS", str(tmp_path / "elsewhere"))
    assert here != cluster.job_prefix("tiny") and here.startswith("polydetox-tiny-")
    long = cluster.job_prefix("a profile's name, (long) & strange: " + "x" * 50)
    assert len(long) <= 50 and set(long) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_no_squeue_is_one_error(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no answer from squeue; run this where jobs can be submitted"):
        cluster.refuse_while_queued("tiny")


@pytest.mark.parametrize(("environment", "seen"), [
    ({}, "0"),
    ({"CUDA_VISIBLE_DEVICES": "1"}, "1"),
    ({"SLURM_JOB_ID": "7"}, ""),
    ({"SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "3"}, ""),  # of the shell that the job was submitted from
    ({"SLURM_JOB_ID": "7", "SLURM_STEP_GPUS": "2", "CUDA_VISIBLE_DEVICES": "0"}, "0"),
    ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, "0,1"),
    ({"SLURM_JOB_ID": "7", execute.RUN: "host:1:7"}, "0"),  # a run on one machine, inside a job
    ({"SLURM_JOB_ID": "7", execute.RUN: "host:1:"}, ""),
])  # fmt: skip
def test_a_stage_sees_one_gpu_here_and_in_a_job_what_slurm_gave(monkeypatch, environment, seen):
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", execute.RUN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    execute._choose_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_kernel_has_time_to_start(checkout, monkeypatch, tmp_path):
    monkeypatch.delenv(execute.RUN, raising=False)
    given = {}
    monkeypatch.setattr("papermill.execute_notebook", lambda *words, **options: given.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        notebook = CHECKOUT / "notebooks/evaluation/generate.ipynb"
        execute.execute(notebook, tmp_path / "o" / "n.ipynb", {}, profile="tiny")
    assert given["start_timeout"] == 600


def snakemakes(monkeypatch, *words: str) -> list[str]:
    """The command line of Snakemake that `polydetox run` makes of its own."""
    seen = []
    monkeypatch.setattr(cli, "_supervise", lambda command, environment: seen.append(command) or 0)
    monkeypatch.setattr("polydetox.preflight.preflight", lambda run: None)
    assert cli.main(["run", "--profile", "tiny", *words]) == 0
    return seen[0][seen[0].index("--snakefile") :]


def test_targets_follow_snakemakes_options(checkout, monkeypatch, capsys):
    words = [
        "--set-threads",
        "dpo=2",
        "--default-resources",
        "slurm_account=a",
        "runtime=5",
        "--",
        "runs/x/manifest.json",
    ]
    command = snakemakes(monkeypatch, *words)
    assert command[command.index("--default-resources") :][1:3] == ["slurm_account=a", "runtime=5"]
    assert command[-2:] == ["--", "runs/x/manifest.json"]
    assert "The report" not in capsys.readouterr().out


def test_an_executor_brings_its_settings(checkout, monkeypatch, squeue):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    command = snakemakes(monkeypatch, "--executor", "slurm", "-j", "5")
    assert command[command.index("--workflow-profile") + 1] == "profiles/slurm"
    assert command[command.index("--jobs") + 1] == "5" and "--cores" not in command
    assert command[command.index("--slurm-jobname-prefix") + 1] == cluster.job_prefix("tiny")
    command = snakemakes(monkeypatch, "--workflow-profile", "slurm")
    assert command[command.index("--slurm-jobname-prefix") + 1] == cluster.job_prefix("tiny")

    command = snakemakes(monkeypatch, "-j", "5")
    assert command[command.index("--workflow-profile") + 1] == "profiles/local"
    assert command[command.index("--cores") + 1] == "5" and "--slurm-jobname-prefix" not in command
    assert snakemakes(monkeypatch, "--executor", "kubernetes")[3] == "none"
    for misspelt in ("no/such", "slrum"):  # which would run everything here
        assert cli.main(["run", "--profile", "tiny", "--workflow-profile", misspelt]) == 2
    (checkout / "list").mkdir()
    (checkout / "list/config.yaml").write_text("- executor: slurm\n")
    assert cli.main(["run", "--profile", "tiny", "--workflow-profile", "list"]) == 2


def test_a_run_on_slurm_without_the_plugin_says_where_it_is_described(checkout, monkeypatch, capsys):
    monkeypatch.setattr("polydetox.preflight.preflight", lambda run: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["run", "--profile", "tiny", "--executor", "slurm"]) == 2
    assert "plugin for it is not installed (README.md, 'On a cluster')" in capsys.readouterr().err


def test_the_shipped_settings_say_what_a_cluster_needs_and_nothing_of_whose_it_is():
    settings = yaml.safe_load((CHECKOUT / "profiles/slurm/config.yaml").read_text("utf-8"))
    assert settings["slurm-status-command"] == "squeue" and settings["slurm-requeue"] is True
    assert settings["retries"] >= 1 and settings["slurm-jobname-prefix"] == "polydetox"
    assert "default-resources" not in settings
    assert "polydetox" in settings["logger"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGHUP, 130)])
def test_snakemake_is_interrupted_with_the_command(checkout, tmp_path, number, status):
    """Killed, or with its terminal closed; also where a script has started it in the background, SIGINT ignored."""
    snakemake = (
        "import sys, time\n"
        f"try:\n    open({str(tmp_path / 'started')!r}, 'w')\n    time.sleep(60)\n"
        f"except KeyboardInterrupt:\n    time.sleep(1); open({str(tmp_path / 'ended')!r}, 'w')\n"
    )
    code = (
        "import os, signal, sys; from polydetox import cli\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup, under which tests may run, has it ignored
        f"try: cli._supervise([sys.executable, '-c', {snakemake!r}], dict(os.environ))\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(tmp_path / "started")
    os.killpg(run.pid, number) if number == signal.SIGHUP else run.kill()
    assert run.wait(30) == status
    wait_for(tmp_path / "ended")


def wait_for(file, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.1)


@pytest.fixture
def printed(capsys):
    """What the logger prints of Snakemake's messages."""
    handler = LogHandler(SimpleNamespace(dryrun=False), None)

    def of(text: str = "", level: int = logging.INFO, **given) -> str:
        record = logging.makeLogRecord({"msg": text, "levelno": level, **given})
        handler.handle(record)
        return capsys.readouterr().err

    of(event=LogEvent.JOB_INFO, jobid=3, local=False, rule_msg="DPO of m", rule_name="dpo")
    of(event=LogEvent.JOB_INFO, jobid=4, local=True, rule_msg="the report", rule_name="render")
    return of


def test_what_the_executor_says_of_a_failure_is_one_line_with_its_log(printed):
    failed = {"event": LogEvent.JOB_ERROR, "jobid": 3, "rule_name": "dpo", "level": logging.ERROR}
    line = printed(**failed, rule_msg="SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'. "
                                      "Detailed failure reason unavailable (status command is not 'sacct').",
                   log=["runs/log.txt", "/c/.snakemake/slurm_logs/rule_dpo/7.log"])  # fmt: skip
    assert line[8:] == ("  failed DPO of m: SLURM-job '7' failed, SLURM status is: 'OUT_OF_MEMORY'. "
                        "(log: /c/.snakemake/slurm_logs/rule_dpo/7.log)\n")  # fmt: skip
    line = printed(**failed, log=[], rule_msg="SLURM sbatch failed. The error message was 'sbatch: error: no\nsuch'.\n"
                                              "    sbatch call:\n        sbatch --wrap=...\n")  # fmt: skip
    assert line[8:] == "  failed DPO of m: SLURM sbatch failed. The error message was 'sbatch: error: no such'.\n"
    again = printed(**failed, log=[], rule_msg="SLURM sbatch failed. The error message was 'sbatch: error: no\nsuch'.")
    assert again == "", "what a second try says again"


def test_the_end_of_a_stage_is_a_line_and_a_failure_has_the_last_error_of_its_log(printed, tmp_path):
    assert printed(event=LogEvent.JOB_FINISHED, job_id=3)[8:] == "  done   DPO of m (0 s)\n"
    assert printed(event=LogEvent.PROGRESS, done=1, total=3) == "1 of 3 steps (33%) done\n"
    log = tmp_path / "log.txt"
    failed = {"event": LogEvent.JOB_ERROR, "jobid": 4, "rule_name": "render", "rule_msg": None, "log": [str(log)]}
    log.write_text("a warning\npolydetox: ValueError: the reason\n  the partially executed notebook: x.ipynb\n")
    line = printed(**failed)
    assert line[8:] == "  failed the report: ValueError: the reason\n  the partially executed notebook: x.ipynb\n"
    assert printed(**failed) == "", "what a second try says again"
    log.write_text("Killed\n")
    assert printed(**failed)[8:] == f"  failed the report: see {log}\n"
    os.utime(log, (0, 0))
    assert printed(**failed) == "", "the log of an earlier run"


def test_messages_are_passed_on_where_someone_who_waits_wants_them(printed):
    assert printed("Building DAG of jobs...") == "" and printed("Exiting because a job failed", logging.ERROR) == ""
    assert printed("Trying to restart job 3.")[8:] == "  again  DPO of m\n"
    assert printed("WorkflowError:\nno such rule", logging.ERROR) == "WorkflowError:\nno such rule\n"
