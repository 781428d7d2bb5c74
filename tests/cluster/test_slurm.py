"""A small profile on a Slurm cluster of two nodes, to the rendered site, by the README's line, through what goes wrong.

The tests share one checkout. Each goes on from what the one before has left, as a user does who gives the same command
again, so that the whole costs little more than one run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import NODE_MB, Cluster, wait_until
from tiny import CHECKOUT, make_checkout

# Seconds until a command is given up. Generous, for machines that do other work: an idle one needs a tenth.
PATIENCE = 600
STAGES = {"checkpoint": "checkpoints/tiny", "pairs": "tiny/tiny/pairs/on-policy", "dpo": "tiny/tiny/dpo/dpo",
          "merge": "tiny/tiny/dpo/merge"}  # fmt: skip
STAGES |= {f"{stage} {variant}": f"tiny/tiny/{variant}/{stage}"
           for stage in ("generate", "score", "evaluate/en") for variant in ("base", "dpo")}  # fmt: skip
# The longest chain of stages, one after the other.
TUNED = "runs/tiny/tiny/dpo/merge/manifest.json"


def readme_line() -> list[str]:
    """The command of the README's section on clusters, for the tiny profile and this cluster."""
    section = (CHECKOUT / "README.md").read_text("utf-8").split("## On a cluster")[1].split("\n## ")[0]
    line = re.search(r"^polydetox (run --profile .*--executor slurm.*(?:(?<=\\)\n.*)*)$", section, re.MULTILINE)
    assert line, "README.md, 'On a cluster': no line that begins with `polydetox run --profile`"
    words = line[1].replace("\\\n", " ").replace("--profile paper", "--profile tiny")
    return shlex.split(words.replace("<account>", "lab").replace("<partition>", "short").replace("240", "15"))


class Study:
    """A checkout with a tiny profile, and the command that runs it on the cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.commands: list[subprocess.Popen] = []
        self.runs = folder / "runs"
        environment = {k: v for k, v in cluster.environment.items() if k != "POLYDETOX_RUNS"}
        self.environment = environment | {"POLYDETOX_ROOT": str(folder), "HF_HUB_OFFLINE": "1"}

    def start(self, *words: str) -> subprocess.Popen:
        """The README's command, which goes on while the test does; statuses are asked for more often than usual.

        It hears a hangup even where the tests run under nohup.
        """
        command = [sys.executable, "-m", "polydetox", *readme_line(), "--slurm-init-seconds-before-status-checks", "5"]
        run = subprocess.Popen(["env", "--default-signal=HUP", *command, *words], cwd=self.folder, text=True,
                               env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)  # fmt: skip
        self.commands.append(run)
        return run

    def clean_up(self) -> None:
        """End what a failed test has left: commands and jobs."""
        for run in self.commands:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()
        self.cluster.ask("scancel", "--user=root")
        self.wait_until_idle(60)

    def finish(self, run: subprocess.Popen) -> str:
        """What the command has printed, once it has ended by itself."""
        try:
            return run.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            jobs = self.cluster.jobs()
            os.killpg(run.pid, signal.SIGKILL)
            pytest.fail(f"still running after {PATIENCE} s:\n{run.communicate()[0]}\n{jobs}")

    def wait_for_job(self, rule: str, run: subprocess.Popen) -> int:
        """The number of a job of a rule, once it runs."""
        found: list[int] = []

        def running() -> bool:
            assert run.poll() is None, run.communicate()[0]
            found[:] = [number for number, (_, state, _, comment) in self.cluster.jobs("running").items()
                        if comment.startswith(f"rule_{rule}")]  # fmt: skip
            return bool(found)

        wait_until(running, PATIENCE, f"job of {rule}")
        return found[0]

    def finished(self) -> dict[str, int]:
        """When each finished stage was finished."""
        manifests = {stage: self.runs / place / "manifest.json" for stage, place in STAGES.items()}
        return {stage: file.stat().st_mtime_ns for stage, file in manifests.items() if file.is_file()}

    def wait_until_idle(self, seconds: float = PATIENCE) -> None:
        wait_until(lambda: not self.cluster.jobs(), seconds, "an empty queue")


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory, tiny_checkpoints) -> Study:
    folder = make_checkout(
        tmp_path_factory.mktemp("cluster") / "checkout", tiny_checkpoints["llama"],
        languages=["en"], trim=None, mechanism=None, alignment=None, capability=None, agreement=None,
        variants={"dpo": {"pairs": "on-policy"}},
    )  # fmt: skip
    with open(folder / "params/models/tiny.yaml", "a", encoding="utf-8") as file:
        file.write("resources: {gpu: 1, mem_mb: 1200}\n")
    return Study(folder, cluster)


@pytest.fixture(autouse=True)
def nothing_left(request):
    """A test that fails leaves neither a command nor a job to the next."""
    yield
    if "study" in request.fixturenames:
        request.getfixturevalue("study").clean_up()


def test_daemons_listen_on_the_loopback_only(cluster):
    ours = {daemon.pid for daemon in cluster.daemons.values()}
    sockets = {os.readlink(link) for pid in ours for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
    table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    lines = [line.split() for line in table.splitlines() if "local_address" not in line]
    listening = [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]
    assert len(listening) == 4 and all(address.startswith("0100007F:") for address in listening), listening


@pytest.mark.parametrize(("asked", "seen"), [(["--gpus=1"], "0"), ([], "")])
def test_a_job_sees_the_gpu_that_slurm_gave_it_and_else_none(cluster, tmp_path, asked, seen):
    """Also where the shell that submits has chosen one, and where devices are not constrained."""
    code = (
        "import os; from polydetox import execute; execute._choose_gpu(); print([os.environ['CUDA_VISIBLE_DEVICES']])"
    )
    environment = cluster.environment | {"CUDA_VISIBLE_DEVICES": "7"}
    command = ["sbatch", "--wait", "-A", "lab", "-n1", *asked, "-o", str(tmp_path / "out"), "--export=ALL",
               f"--wrap=srun -n1 {' '.join(asked)} {shlex.join([sys.executable, '-c', code])}"]  # fmt: skip
    subprocess.run(command, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert (tmp_path / "out").read_text().strip() == repr([seen])


def test_more_memory_than_a_node_has_fails_with_the_reason_in_one_line(study):
    printed = study.finish(study.start("--set-resources", f"checkpoint:mem_mb={NODE_MB + 1}"))
    lines = [line for line in printed.splitlines() if "failed checkpoint of tiny: " in line]
    assert len(lines) == 1, printed
    assert "Memory specification can not be satisfied" in lines[0]
    assert "not finished; mend this, and the same command resumes" in printed
    assert not study.finished() and not study.cluster.jobs()


def test_a_closed_terminal_cancels_the_jobs(study):
    run = study.start("--", TUNED)
    study.wait_for_job("checkpoint", run)
    os.killpg(run.pid, signal.SIGHUP)
    printed = study.finish(run)
    assert run.returncode == 130 and "stopped; the same command resumes from here" in printed, printed
    study.wait_until_idle(60)


def test_a_killed_command_cancels_its_jobs_and_goes_on(study):
    run = study.start("--", TUNED)
    study.wait_for_job("pairs", run)
    done = study.finished()
    assert list(done) == ["checkpoint"]
    run.kill()
    run.wait()
    study.wait_until_idle(60)

    again = study.start("--", TUNED)
    job = study.wait_for_job("pairs", again)
    assert study.finished() == done, "nothing is done twice"
    record = study.cluster.record(job)
    assert (record["Account"], record["Partition"], record["Timelimit"]) == ("lab", "short", "00:15:00")
    assert "gres/gpu=1" in record["AllocTRES"] and "mem=1200M" in record["ReqTRES"], record

    # Killed with everything that it has started here, nobody is left to cancel the job: it goes on by itself.
    os.killpg(again.pid, signal.SIGKILL)
    again.wait()
    study.cluster.signal_job(job, signal.SIGSTOP)  # so that it does not end before it is asked for
    refused = study.start("--", TUNED)
    printed = study.finish(refused)
    study.cluster.signal_job(job, signal.SIGCONT)
    assert refused.returncode == 2, printed
    line = printed.splitlines()[-1]
    assert f"({job} pairs" in line and "running on n2" in line and f"`scancel {job}`" in line, printed
    study.wait_until_idle()
    assert set(study.finished()) == {"checkpoint", "pairs"}


def test_a_cancelled_job_is_tried_again_and_the_run_does_not_hang(study):
    done = study.finished()
    run = study.start("--", TUNED)
    job = study.wait_for_job("dpo", run)
    study.cluster.ask("scancel", str(job))
    printed = study.finish(run)
    assert run.returncode == 0, printed
    assert f"SLURM-job '{job}' failed, SLURM status is: 'CANCELLED'" in printed, printed
    now = study.finished()
    assert list(now) == ["checkpoint", "pairs", "dpo", "merge"] and done.items() <= now.items(), (done, now)


def test_a_lost_node_loses_no_job_and_the_run_ends_at_the_site(study):
    done = study.finished()
    run = study.start()
    job = study.wait_for_job("score", run)
    node = study.cluster.jobs()[job][2]
    study.cluster.lose_node(node)
    try:
        wait_until(lambda: study.cluster.restarts(job) == 1, PATIENCE, f"{node} is missed and job {job} queued again")
    finally:
        study.cluster.start_node(node)
    printed = study.finish(run)
    assert run.returncode == 0, printed
    now = study.finished()
    assert set(now) == set(STAGES) and done.items() <= now.items(), (done, now)
    assert printed.rstrip().endswith("runs/tiny/site/index.html")
    assert "Tiny" in (study.runs / "tiny/site/index.html").read_text("utf-8")


def test_a_stage_that_fails_says_where_its_log_and_its_notebook_are(study):
    """By its own reason, and by Slurm's; a second run mends it."""
    table = study.runs / "tiny/tiny/base/generate/continuations.parquet"
    whole, stamp = table.read_bytes(), table.stat()
    table.write_bytes(whole[:100])
    (study.runs / "tiny/tiny/base/score/manifest.json").unlink()
    os.utime(table, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    run = study.start("--retries", "0", "--", "runs/tiny/tiny/base/score/manifest.json")
    printed = study.finish(run)
    assert run.returncode == 1, printed
    (line,) = [line for line in printed.splitlines() if "failed scores: tiny, base" in line]
    log = re.search(r"SLURM status is: 'FAILED'.*\(log: (\S+)\)$", line)
    assert log and Path(log[1]).is_file(), line
    assert "continuations.parquet: not a readable Parquet file" in printed
    assert "runs/tiny/failed/tiny-base-score.ipynb" in printed


def test_plain_snakemake_reads_the_same_settings(study):
    """``snakemake --workflow-profile profiles/slurm``: what the test before has damaged is left to do."""
    command = [sys.executable, "-m", "snakemake", "--config", "profile=tiny", "--workflow-profile", "profiles/slurm"]
    target = "runs/tiny/tiny/base/score/manifest.json"
    done = subprocess.run([*command, "-n", "--", target], cwd=study.folder, env=study.environment, text=True,
                          capture_output=True, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "score" in done.stdout + done.stderr
