"""Where the server's socket is, and what goes over it: messages of JSON, with open files beside them.

Everything here is imported by every client before every notebook, so it imports little.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import socket
import stat
import struct
import sys
from typing import Any

# Room for ``/<name>.sock``; an address holds 107 bytes on Linux.
_LONGEST_ADDRESS = 99

_LENGTH = struct.Struct("!I")

# How many open files may come with a message: standard input, output and error.
_FILES = 3

# Numbers of threads: applied in the kernel after the fork (``server``), so they may differ between kernels.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS",
)  # fmt: skip

# Beginnings of variables that Python, the loader or a preloaded library reads once, when it starts or is imported.
_IMPORT_VARIABLES = (
    "PYTHON", "LD_", "LC_", "LANG", "GLIBC_", "MALLOC_", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NPY_", "NUMPY_", "SCIPY_", "SKLEARN_", "JOBLIB_", "ARROW_", "MPL",
    "MATPLOTLIBRC", "TQDM_", "TORCH", "PYTORCH", "TRITON_", "CUDA_HOME", "CUDA_PATH", "BITSANDBYTES_", "BNB_", "HF_",
    "HUGGINGFACE_", "TRANSFORMERS_", "DATASETS_", "ACCELERATE_", "PEFT_", "TRL_", "USE_", "POLYDETOX_KERNEL_",
)  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return ""


def inherited() -> list[Any]:
    """All that a server's kernels would inherit from it and a client could see to differ from its own."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_IMPORT_VARIABLES) and name not in THREAD_VARIABLES
    }
    limits = [resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name[:7] == "RLIMIT_"]
    mask = os.umask(0)
    os.umask(mask)
    spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "user", "ipc")]
    return [
        sys.path, variables, limits, mask, os.nice(0), sorted(os.sched_getaffinity(0)),
        os.getresuid(), os.getresgid(), sorted(os.getgroups()), spaces, read("/proc/self/cgroup"),
    ]  # fmt: skip


def installation() -> str:
    """Eight digits that name this Python environment and this copy of the library."""
    return _digest([sys.prefix, os.path.dirname(os.path.abspath(__file__)), sys.version])[:8]


def folder() -> str:
    """The private folder of this user's sockets, made if it is not there.

    ``$XDG_RUNTIME_DIR/polydetox``, else ``polydetox-<uid>`` in the temporary folder. Raises ``OSError`` where neither
    can be made, or is not a folder of this user that nobody else may enter (mode 0700).
    """
    candidates = [os.path.join(os.environ.get("TMPDIR") or "/tmp", f"polydetox-{os.getuid()}")]
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.insert(0, os.path.join(os.environ["XDG_RUNTIME_DIR"], "polydetox"))
    reasons = []
    for candidate in candidates:
        try:
            _make_private(candidate)
        except OSError as error:
            reasons.append(str(error))
        else:
            return candidate
    raise OSError("; ".join(reasons))


def _make_private(path: str) -> None:
    if len(os.fsencode(os.path.abspath(path))) + len("/12345678-1234567890123456.sock") > _LONGEST_ADDRESS:
        raise OSError(f"{path}: too long for a socket's address")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise OSError(f"{path}: not a folder of mode 0700 that belongs to this user")
    if not os.access(path, os.W_OK | os.X_OK):
        raise OSError(f"{path}: not writable")


def address() -> str:
    """The path of the socket of the server that fits this process; raises ``OSError`` as :func:`folder` does."""
    return os.path.join(folder(), f"{installation()}-{_digest(inherited())[:16]}.sock")


def beside(path: str, suffix: str) -> str:
    """The file beside a socket that has another suffix: ``.lock`` or ``.log``."""
    return path.removesuffix(".sock") + suffix


def connect(path: str) -> socket.socket | None:
    """Connect to the server that listens at ``path``; None where none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        if peer(connection)[1] == os.getuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user id of the other end."""
    credentials = struct.Struct("3i")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    process, user, _ = credentials.unpack(raw)
    return process, user


def send(connection: socket.socket, message: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """Send one message and open files; raises ``OSError`` where the other end is gone."""
    body = json.dumps(message).encode()
    header = _LENGTH.pack(len(body))
    if files:
        socket.send_fds(connection, [header], files)
    else:
        connection.sendall(header)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Wait for one message and its open files; the message is None where the other end is gone."""
    files: list[int] = []
    try:
        header, files, _, _ = socket.recv_fds(connection, _LENGTH.size, _FILES)
        header += _exactly(connection, _LENGTH.size - len(header)) if header else b""
        if header:
            return json.loads(_exactly(connection, _LENGTH.unpack(header)[0])), list(files)
    except (OSError, ValueError):
        pass
    for file in files:
        os.close(file)
    return None, []


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("the other end is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
