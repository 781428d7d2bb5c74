"""A Slurm cluster of two nodes on this host, on loopback, for the tests of this folder.

munged, mariadbd, slurmdbd, slurmctld and two slurmds, from Debian's packages, each stopped by its process id. Their
configuration has to be in ``/etc/slurm``, where Slurm's commands look for it within a job: the files there are links
into the cluster's own folder, and are removed with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path

SYSTEM = Path("/etc/slurm")
FILES = ("slurm.conf", "slurmdbd.conf", "gres.conf")
PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"
COMMANDS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sacctmgr", "squeue")
NODE_MB = 3000
NVIDIA = os.makedev(195, 0)

SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# cgroups are not for every container; without them devices are not constrained, the harder case for CUDA.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=5
MinJobAge=300
ReturnToService=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={folder}/munge/socket
AccountingStorageEnforce=associations
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory={memory}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory={memory} Gres=gpu:1
PartitionName=short Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""
DATABASE = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CommunicationParameters=NoInAddrAny
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StoragePass=unused
StorageLoc=slurm_acct
"""
GRES = "NodeName=n2 Name=gpu File={folder}/nvidia0\n"


def why_not() -> str:
    """Why no cluster can be started here; empty where one can."""
    missing = [name for name in COMMANDS if shutil.which(name, path=_path()) is None]
    if os.geteuid() != 0:
        return "a Slurm cluster is started by root only"
    if missing:
        return f"no {', '.join(missing)}: apt-get install --no-install-recommends {PACKAGES}"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "snakemake-executor-plugin-slurm is not installed"
    own = [SYSTEM / name for name in FILES if (SYSTEM / name).exists() and not (SYSTEM / name).is_symlink()]
    if own:
        return f"{own[0]} is this host's own"
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "unknown"
    if not address.startswith("127."):  # slurmd listens on the address of its host's name
        return f"{socket.gethostname()} is {address}, and not on the loopback: give it 127.0.0.1 in /etc/hosts"
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(Path(folder) / "gpu", 0o666 | stat.S_IFCHR, NVIDIA)
        except PermissionError:
            return "no device can be made here, which a fake GPU is"
    return ""


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def _free_ports(number: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in taken]
    for server in taken:
        server.close()
    return ports


def wait_until(ready, seconds: float, what: str) -> None:
    """Ask ``ready`` until it is true, for some seconds at most."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)


class Cluster:
    """The daemons, their folder, and what a test asks or does."""

    def __init__(self) -> None:
        # Not below pytest's folders: munged runs as a user of its own, who may not enter them.
        self.folder = Path(tempfile.mkdtemp(prefix="polydetox-cluster-"))
        self.folder.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen] = {}
        self.environment = os.environ | {"PATH": _path(), "MYSQL_UNIX_PORT": str(self.folder / "mysql/socket")}

    def start(self) -> None:
        """Start everything, in the order in which one needs the other."""
        self._configure()
        self._start_munge()
        self._start_database()
        self._daemon("slurmdbd", "slurmdbd", "-D")
        wait_until(lambda: self.ask("sacctmgr", "-n", "list", "cluster", check=False).returncode == 0, 30, "slurmdbd")
        for words in ("cluster test", "account lab Cluster=test", "user root Account=lab DefaultAccount=lab"):
            self.ask("sacctmgr", "-i", "add", *words.split())
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        wait_until(lambda: self.ask("scontrol", "ping", check=False).returncode == 0, 30, "slurmctld")
        for node in ("n1", "n2"):
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, and wait until it takes jobs."""
        self._daemon(node, "slurmd", "-D", "-N", node)
        wait_until(lambda: self.node_state(node) in ("idle", "mixed", "allocated"), 30, f"node {node}")

    def lose_node(self, node: str) -> None:
        """A node that crashes: its daemon and all its jobs' processes end at once."""
        daemon = self.daemons.pop(node)
        jobs = self.ask("squeue", "-h", "-w", node, "-o", "%A").stdout.split()
        daemon.kill()
        daemon.wait()
        for job in jobs:
            self.signal_job(job, signal.SIGKILL)

    def signal_job(self, job: int | str, number: signal.Signals) -> None:
        """Send a signal to everything that a job has started, of which Slurm is not told."""
        for process in _processes_of(str(job)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def stop(self) -> None:
        """End jobs and daemons, the last started first, and remove what they wrote."""
        if "slurmctld" in self.daemons:
            self.ask("scancel", "--user=root", check=False)
            time.sleep(1)
        for daemon in reversed(list(self.daemons.values())):
            daemon.terminate()
            try:
                daemon.wait(15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for name in FILES:
            if (SYSTEM / name).is_symlink():
                (SYSTEM / name).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run one of Slurm's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    def jobs(self, states: str = "pending,running,completing") -> dict[int, list[str]]:
        """The jobs in some states: ``name, state, node, comment`` (the rule and its wildcards) by their number."""
        lines = self.ask("squeue", "-h", "-t", states, "-o", "%A|%j|%T|%N|%k").stdout.splitlines()
        return {int(number): rest for number, *rest in (line.split("|") for line in lines)}

    def record(self, job: int) -> dict[str, str]:
        """What the accounting database keeps of a job, once it has all of it: it may lag behind."""
        fields = ("State", "Account", "Partition", "ReqTRES", "AllocTRES", "NodeList", "Timelimit")
        found: dict[str, str] = {}

        def complete() -> bool:
            answer = self.ask("sacct", "-X", "-n", "-P", "-j", str(job), "-o", ",".join(fields)).stdout.split("\n")[0]
            found.update(zip(fields, answer.split("|"), strict=False))
            return bool(found.get("Partition") and found.get("AllocTRES"))

        wait_until(complete, 60, f"the accounting of job {job}")
        return found

    def restarts(self, job: int) -> int:
        """How often Slurm has queued a job again."""
        shown = self.ask("scontrol", "--oneliner", "show", "job", str(job)).stdout
        return int(shown.split(" Restarts=")[1].split()[0])

    def node_state(self, node: str) -> str:
        return self.ask("sinfo", "-h", "-n", node, "-o", "%T", check=False).stdout.strip().rstrip("*~#")

    def _configure(self) -> None:
        ctld, dbd, n1, n2 = _free_ports(4)
        values = {"folder": self.folder, "host": socket.gethostname(), "memory": NODE_MB} | {
            "ctld": ctld, "dbd": dbd, "n1": n1, "n2": n2}  # fmt: skip
        SYSTEM.mkdir(exist_ok=True)
        for name, text in zip(FILES, (SLURM, DATABASE, GRES), strict=True):
            file = self.folder / name
            file.write_text(text.format(**values))
            file.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
            (SYSTEM / name).unlink(missing_ok=True)
            (SYSTEM / name).symlink_to(file)
        (self.folder / "state").mkdir()
        # What Slurm takes for a GPU: a device of NVIDIA's number.
        os.mknod(self.folder / "nvidia0", 0o666 | stat.S_IFCHR, NVIDIA)

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.mkdir(mode=0o755)
        (folder / "key").write_bytes(secrets.token_bytes(128))
        (folder / "key").chmod(0o600)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        self._daemon("munged", "munged", "--foreground", f"--socket={folder}/socket", f"--key-file={folder}/key",
                     f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed",
                     user="munge")  # fmt: skip
        wait_until((folder / "socket").exists, 20, "munged")

    def _start_database(self) -> None:
        folder = self.folder / "mysql"
        folder.mkdir(mode=0o755)
        shutil.chown(folder, "mysql", "mysql")
        made = subprocess.run(
            ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={folder}/data", "--skip-test-db",
             "--auth-root-authentication-method=socket", "--auth-root-socket-user=root"],
            env=self.environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        self._daemon("mariadbd", "mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}/data",
                     f"--socket={folder}/socket", "--skip-networking", f"--pid-file={folder}/pid")  # fmt: skip
        wait_until((folder / "socket").exists, 60, "mariadbd")

    def _daemon(self, name: str, *command: str, user: str | None = None) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True, user=user, group=user, extra_groups=[] if user else None, cwd="/",
            )  # fmt: skip


def _processes_of(job: str) -> list[int]:
    """The processes of a Slurm job: first the daemons of its steps, who would report an end."""
    daemons, found = [], []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if f"slurmstepd: [{job}.".encode() in command:
            daemons.append(int(folder.name))
        elif f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(folder.name))
    return daemons + found
