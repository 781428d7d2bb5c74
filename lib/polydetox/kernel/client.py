"""The process that Jupyter starts: finds or starts the server, has it fork a kernel, and stands in for that kernel."""

from __future__ import annotations

import fcntl
import glob
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from polydetox.kernel import protocol

# Signals that a program may mean for the kernel; SIGKILL and SIGSTOP cannot be caught.
_FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
)  # fmt: skip

# A log that has grown beyond this many bytes is started anew with the next server.
_LOG_SIZE = 1 << 20


class Unavailable(Exception):
    """Why no kernel can be forked here."""


def launch(arguments: list[str]) -> NoReturn:
    """Be the kernel that ``python -m ipykernel_launcher <arguments>`` would be."""
    if not os.environ.get("POLYDETOX_KERNEL_PLAIN"):
        try:
            _die_as(_forked_kernel(arguments))
        except (Unavailable, OSError) as error:
            print(f"polydetox kernel: {error}; using the plain kernel", file=sys.stderr, flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *arguments])


def _forked_kernel(arguments: list[str]) -> int:
    """Have a server fork a kernel and stand in for it until it ends; return its wait status."""
    deadline = time.monotonic() + float(os.environ.get("POLYDETOX_KERNEL_WAIT") or 40)
    path = protocol.address()
    request = {"do": "launch", "arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    while True:
        connection = protocol.connect(path) or _started(path, deadline)
        with _caught_signals() as caught:
            reply = _ask(connection, request, _standard_files(), deadline)
            if reply.get("status") == "launched":
                return _attend(connection, reply["process"], caught)
        connection.close()
        if reply.get("status") == "refused":
            raise Unavailable(reply["reason"])
        # The server was stale or about to end; it has removed its socket, so that the next turn starts another one.
        if time.monotonic() > deadline:
            raise Unavailable("no server took the notebook in time")


def _ask(connection: socket.socket, request: dict[str, Any], files: tuple[int, ...], deadline: float) -> dict[str, Any]:
    """Send a request and wait for the reply, which is empty where the server ended before it gave one."""
    connection.settimeout(max(deadline - time.monotonic(), 1.0))
    try:
        protocol.send(connection, request, files)
    except OSError:
        return {}
    reply, _ = protocol.receive(connection)
    connection.settimeout(None)
    return reply or {}


def _standard_files() -> tuple[int, ...]:
    """Standard input, output and error, with the null device for one that is closed."""
    files = []
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            number = os.open(os.devnull, mode)
        files.append(number)
    return tuple(files)


# Starting the server


@contextmanager
def _locked(path: str, deadline: float) -> Iterator[int]:
    """Hold the lock of the socket at ``path``; raise ``Unavailable`` where another holds it past the deadline."""
    lock = os.open(protocol.beside(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable("the server is still starting") from None
                time.sleep(0.02)
        yield lock
    finally:
        os.close(lock)


def _started(path: str, deadline: float) -> socket.socket:
    """Start the server, unless another client just did, and connect to it."""
    with _locked(path, deadline) as lock:
        connection = protocol.connect(path)
        if connection is None:
            _start_server(path, lock, deadline)
            connection = protocol.connect(path)
    if connection is None:
        raise Unavailable(f"the server did not start (see {protocol.beside(path, '.log')})")
    return connection


def _start_server(path: str, lock: int, deadline: float) -> None:
    """Run the server as a process that nobody waits for, and wait until it listens or has failed.

    It inherits the lock, so that no second one is started while it imports even if this client is killed.
    """
    name = protocol.beside(path, ".log")
    log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    if os.fstat(log).st_size > _LOG_SIZE:
        os.ftruncate(log, 0)
    ready, tell = os.pipe()
    command = [sys.executable, "-m", "polydetox.kernel", "serve",
               "--socket", path, "--ready", str(tell), "--lock", str(lock)]  # fmt: skip
    between = os.fork()
    if between == 0:
        # The server is a grandchild, so that it is not left as this client's zombie when it ends first.
        try:
            os.setsid()
            if os.fork() == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                os.set_inheritable(tell, True)
                os.set_inheritable(lock, True)
                os.execv(sys.executable, command)
        finally:
            os._exit(0)
    os.close(tell)
    os.close(log)
    os.waitpid(between, 0)
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    answered = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
    os.close(ready)
    if not answered:
        raise Unavailable("the server is still starting")


# Standing in for the kernel


@contextmanager
def _caught_signals() -> Iterator[int]:
    """Catch the signals that are forwarded; yields the file from which their numbers are read, a byte each."""
    caught, write = os.pipe()
    os.set_blocking(caught, False)
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in _FORWARDED}
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield caught
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        os.close(caught)


def _attend(connection: socket.socket, process: int, caught: int) -> int:
    """Forward signals until the kernel ends; return its wait status.

    Where the parent is gone, the status is that of an ``exit(1)``, as ipykernel's own check of its parent has it, and
    the server ends the kernel when it sees the connection closed.
    """
    given = os.environ.get("JPY_PARENT_PID", "")
    parent = os.getppid()
    # A parent that is not the one named (a shell between them) is taken to be gone when init has become the parent.
    gone = (lambda: os.getppid() != parent) if given == str(parent) else (lambda: os.getppid() == 1)
    watched = given not in ("", "0", "1")
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    poll.register(caught, select.POLLIN)
    while True:
        files = {file for file, _ in poll.poll(1000 if watched else None)}
        if caught in files:
            for number in os.read(caught, 512):
                # Where this fails, the server is gone and the next turn finds the connection closed.
                _tell(connection, {"signal": number})
        if connection.fileno() in files:
            message, _ = protocol.receive(connection)
            if message is not None:
                return int(message["ended"])
            # The server was killed. Its kernels die with it; what they had started is still in their process group.
            _kill_group(process)
            print("polydetox kernel: the server was killed, and its kernels with it", file=sys.stderr, flush=True)
            return 1 << 8
        if watched and gone():
            return 1 << 8


def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):
        protocol.send(connection, message)


def _kill_group(process: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _die_as(status: int) -> NoReturn:
    """End as the process with this wait status did: by the same signal, or with the same exit status."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    # The kernel has left a core file where one was wanted.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    os._exit(128 - code)


# All servers of this installation


def _sockets() -> list[str]:
    """The sockets of all servers that this installation has started, listening or not."""
    try:
        pattern = os.path.join(glob.escape(protocol.folder()), f"{protocol.installation()}-*.lock")
    except OSError:
        return []
    return [lock.removesuffix(".lock") + ".sock" for lock in sorted(glob.glob(pattern))]


def stop(timeout: float, *, now: bool) -> bool:
    """See :func:`polydetox.kernel.stop`."""
    deadline = time.monotonic() + timeout
    waiting = []
    for path in _sockets():
        try:
            with _locked(path, deadline):  # a server that is starting holds its lock until it listens
                connection = protocol.connect(path)
        except Unavailable:
            return False
        if connection is not None:
            _ask(connection, {"do": "stop", "now": now}, (), deadline)
            waiting.append(connection)
    ended = True
    for connection in waiting:
        # The server leaves the connection open until it ends.
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            ended &= connection.recv(1) == b""
        except ConnectionError:
            pass
        except TimeoutError:
            ended = False
        connection.close()
    return ended


def status() -> list[dict[str, Any]]:
    """What each running server says of itself: process, kernels, seconds since its start, refusal, log."""
    answers = []
    for path in _sockets():
        connection = protocol.connect(path)
        if connection is not None:
            answers.append(_ask(connection, {"do": "status"}, (), time.monotonic() + 5))
            connection.close()
    return [answer for answer in answers if answer]
