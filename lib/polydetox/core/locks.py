"""Locks between processes, of one host or of several, on any file system.

Shared file systems often have no ``flock`` (Lustre unless it is mounted for it, some FUSE and NFS mounts), or one that
holds on a single host. Here the lock is a file that names its holder, who touches it every few seconds. A holder of
this host is known to be dead at once, one of another host when the file has not been touched for ``LEASE`` seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from polydetox.core import paths
from polydetox.core.errors import UserError

if TYPE_CHECKING:
    from filelock import LeaseCompromise, SoftFileLease

# Seconds without a touch after which the holder counts as dead; it touches the file three times as often.
LEASE = 60.0


@contextmanager
def held(path: Path, refusal: str = "") -> Iterator[None]:
    """Hold the lock at ``path``. A living holder is waited for, or with ``refusal`` is a ``UserError`` that names it.

    A process that loses its lock, because it stood still for longer than ``LEASE`` or because someone removed the
    file, is ended by SIGTERM: two must not do the same work.
    """
    from filelock import SoftFileLease, Timeout

    def lost(loss: LeaseCompromise) -> None:
        print(f"polydetox: {path} is no longer this process's ({loss.reason}); stopping", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    lock = SoftFileLease(path, lease_duration=LEASE, on_compromise=lost)
    place = paths.relative(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.2, cancel_check=_holder_lives(lock) if refusal else None)
    except Timeout:
        raise UserError(f"{refusal} ({_holder(lock)}); wait for it or stop it; its lock is {place}") from None
    except OSError as error:
        folder = paths.relative(path.parent)
        raise UserError(f"{folder}: {error.strerror}; name another folder in POLYDETOX_RUNS") from None
    try:
        yield
    finally:
        lock.release()


def _holder_lives(lock: SoftFileLease) -> Callable[[], bool]:
    """A function that is asked while the lock is waited for: whether its holder is seen to be alive."""
    import psutil

    seen: dict[str, int] = {}  # when the file of each holder was touched, as first seen
    began = time.monotonic()

    def lives() -> bool:
        if time.monotonic() - began > 3 * LEASE:  # a file without a name in it, which a full disk or a crash can leave
            return True
        try:
            owner, touched = lock.owner, os.stat(lock.lock_file).st_mtime_ns
        except FileNotFoundError:
            return False
        if owner is None:
            return False
        # The lock of a dead process of this host has been broken before this is asked.
        if _host(owner.hostname) == socket.gethostname() and psutil.pid_exists(owner.pid):
            return True
        if not seen:
            print(f"polydetox: locked by {_holder(lock)}; waiting {LEASE:.0f} s at most to see whether it is alive",
                  file=sys.stderr, flush=True)  # fmt: skip
        return touched != seen.setdefault(str(owner.token), touched)

    return lives


def _host(recorded: str) -> str:
    return recorded.partition("?")[0]  # filelock adds the container's process namespace


def _holder(lock: SoftFileLease) -> str:
    owner = lock.owner
    return f"process {owner.pid} on {_host(owner.hostname)}" if owner else "an unknown process"
