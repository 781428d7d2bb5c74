"""Locks between processes, of one host or several, on file systems with or without ``flock``.

The lock is a file that names its holder, who touches it every few seconds. A holder of this host is known to be dead at
once, one of another host when the file has not been touched for ``LEASE`` seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
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

    A process that loses its lock is ended by SIGTERM: two must not do the same work.
    """
    from filelock import SoftFileLease, Timeout

    def lost(loss: LeaseCompromise) -> None:
        print(f"polydetox: {path} is no longer this process's ({loss.reason}); stopping", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    lock = SoftFileLease(path, lease_duration=LEASE, on_compromise=lost)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=0.2, timeout=_patience(lock) if refusal else -1)
    except Timeout:
        raise UserError(
            f"{refusal} ({_holder(lock)}); wait for it or stop it; its lock is {paths.relative(path)}"
        ) from None
    except OSError as error:
        folder = paths.relative(path.parent)
        raise UserError(f"{folder}: {error.strerror}; name another folder in POLYDETOX_RUNS") from None
    try:
        yield
    finally:
        lock.release()


def _patience(lock: SoftFileLease) -> float:
    """Seconds after which a lock that is not free has a living holder: few for one of this host."""
    if not os.path.lexists(lock.lock_file) or _host(lock) == socket.gethostname():
        return 2.0
    print(f"polydetox: locked by {_holder(lock)}; waiting {1.5 * LEASE:.0f} s at most to see whether it is alive",
          file=sys.stderr, flush=True)  # fmt: skip
    return 1.5 * LEASE


def _host(lock: SoftFileLease) -> str:
    return lock.owner.hostname.partition("?")[0] if lock.owner else ""  # filelock adds the container's namespace


def _holder(lock: SoftFileLease) -> str:
    return f"process {lock.owner.pid} on {_host(lock)}" if lock.owner else "an unknown process"
