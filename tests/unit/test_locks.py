"""Locks between processes of one host and of several, on file systems with and without flock."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from polydetox.core import locks
from polydetox.core.errors import UserError

HOLDS = """
import errno, fcntl, os, socket, sys, time
def flock(*_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = fcntl.lockf = flock
socket.gethostname = lambda: sys.argv[2] or os.uname().nodename
from pathlib import Path
from polydetox.core import locks
locks.LEASE = float(sys.argv[3])
with locks.held(Path(sys.argv[1]), "the profile is being run already"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path, host="", lease=60.0) -> subprocess.Popen:
    """A process that holds a lock on a file system without flock, on this host or one of another name."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, path, host, str(lease)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def stopped():
    processes = []
    yield processes.append
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_living_holder_is_named_and_a_killed_one_holds_nothing(tmp_path, stopped):
    path = tmp_path / "run" / ".running"
    process = holder(path)
    stopped(process)
    with pytest.raises(UserError) as refused, locks.held(path, "profile 'x' is being run already"):
        pass
    words = f"profile 'x' is being run already (process {process.pid} on {socket.gethostname()})"
    assert str(refused.value).startswith(words) and str(path) in str(refused.value)
    process.kill()
    process.wait()
    began = time.monotonic()
    with locks.held(path, "profile 'x' is being run already"):
        assert path.is_file()
    assert time.monotonic() - began < 5 and not path.exists()


def test_a_holder_on_another_host_is_watched(tmp_path, stopped, monkeypatch, capfd):
    monkeypatch.setattr(locks, "LEASE", 3.0)
    path = tmp_path / ".running"
    process = holder(path, "elsewhere", 3.0)
    stopped(process)
    with pytest.raises(UserError, match=f"process {process.pid} on elsewhere"), locks.held(path, "it is being run"):
        pass
    process.kill()
    process.wait()
    with locks.held(path, "it is being run"):
        pass
    said = f"polydetox: locked by process {process.pid} on elsewhere; "
    assert [line[: len(said)] for line in capfd.readouterr().err.splitlines()] == [said] * 2


def test_a_holder_that_is_waited_for(tmp_path):
    path, order = tmp_path / ".making", []

    def second() -> None:
        with locks.held(path):
            order.append("second")

    with locks.held(path):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_who_loses_the_lock_is_ended(tmp_path, stopped):
    path = tmp_path / ".running"
    process = holder(path, lease=1.5)
    stopped(process)
    path.unlink()
    assert process.wait(20) == -signal.SIGTERM


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    says = pytest.raises(UserError, match=r"file.run: .+; name another folder in POLYDETOX_RUNS")
    with says, locks.held(tmp_path / "file" / "run" / ".running"):
        pass
