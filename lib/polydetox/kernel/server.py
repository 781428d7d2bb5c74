"""The server: imports the heavy libraries once, then forks a kernel for each client that asks.

It has one thread and one loop. In a forked kernel :meth:`Server.run` returns what was asked for, and
:func:`_become_kernel` turns the process into an ordinary ipykernel.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import importlib.util
import os
import pkgutil
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from polydetox.kernel import protocol

# What the notebooks of this project import. ``module:attribute`` makes a lazy package import what holds the attribute,
# ``module:function()`` is called.
PRELOAD = (
    "numpy", "pandas", "pyarrow.parquet", "pyarrow.dataset", "scipy.stats", "matplotlib.pyplot", "seaborn",
    "sklearn.linear_model", "sklearn.metrics", "safetensors.torch", "torch", "torch.utils.data", "datasets",
    "accelerate", "transformers:AutoModelForCausalLM", "transformers:AutoModelForSeq2SeqLM",
    "transformers:AutoModelForSequenceClassification", "transformers:AutoTokenizer", "transformers:Trainer",
    "transformers:GPT2LMHeadModel", "transformers:BloomForCausalLM", "transformers:LlamaForCausalLM",
    "transformers:Gemma3ForCausalLM", "transformers:PreTrainedTokenizerFast", "peft:LoraConfig", "peft:get_peft_model",
    "trl:DPOConfig", "trl:DPOTrainer", "polydetox.*", "polydetox.warm:first_uses()",
)  # fmt: skip

# What ipykernel itself imports while it starts, so that a kernel need not.
_KERNEL_MODULES = (
    "ipykernel.kernelapp", "ipykernel.debugger", "IPython.core.completerlib", "IPython.core.debugger",
    "IPython.core.logger", "IPython.core.oinspect", "IPython.extensions.storemagic", "psutil", "sqlite3", "tornado.gen",
    "tornado.platform.asyncio", "tornado.queues",
)  # fmt: skip

# Set while the libraries are imported. OpenBLAS and Arrow's jemalloc would start threads, and PyTorch's check for a GPU
# would initialise CUDA. ipykernel takes a parent 1 for one that needs no watching, which the client does.
_WHILE_IMPORTING = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "JPY_PARENT_PID": "1",
}
# What a plain kernel has chosen before a notebook imports matplotlib.
_INLINE_BACKEND = "module://matplotlib_inline.backend_inline"

# How long a kernel may take to end: after SIGTERM (or its last answer), and after SIGKILL.
_TERMINATION_SECONDS = 2.0
_KILL_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1


def log(text: str) -> None:
    """Write one line with the time and the process to the log, which is the server's stderr."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} [{os.getpid()}] {text}", file=sys.__stderr__, flush=True)


# Importing


class _CurrentStream:
    """Stands for ``sys.stdout`` or ``sys.stderr`` while libraries are imported.

    A logging handler that keeps the stream it finds then writes to the notebook's stream after the fork, as it does
    where the notebook imports the library itself.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._own = getattr(sys, name)

    def __getattr__(self, attribute: str) -> Any:
        stream = getattr(sys, self._name)
        return getattr(self._own if stream is self else stream, attribute)


class _NotebookShell:
    """As much of an IPython shell as transformers looks at to learn whether it is in a notebook."""

    config: ClassVar[dict[str, dict[str, str]]] = {"IPKernelApp": {}}


def preload(names: list[str]) -> dict[str, str]:
    """Import what can be imported; a missing or broken module is logged and left to the notebook that needs it.

    Returns the environment variables that the imports have set.
    """
    environment = dict(os.environ)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _CurrentStream("stdout"), _CurrentStream("stderr")  # type: ignore[assignment]
    try:
        for name in [*_KERNEL_MODULES, "threadpoolctl", *names]:
            module, _, attribute = name.partition(":")
            if module.partition(".")[0] == "transformers":
                _seem_a_notebook()
            for expanded in _expanded(module):
                try:
                    imported = importlib.import_module(expanded)
                    if attribute:
                        found = getattr(imported, attribute.removesuffix("()"))
                        if attribute.endswith("()"):
                            found()
                except Exception as error:
                    log(f"not preloaded: {name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    finally:
        sys.stdout, sys.stderr = streams
    return {name: value for name, value in os.environ.items() if environment.get(name) != value}


def _expanded(name: str) -> list[str]:
    """``package.*`` as the package and all modules in it, but not this one nor programs."""
    if not name.endswith(".*"):
        return [name]
    package = importlib.import_module(name.removesuffix(".*"))
    names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", lambda _: None)]
    return [name for name in names if "__main__" not in name and not name.startswith("polydetox.kernel")]


def _seem_a_notebook() -> None:
    """Let transformers find, once, that it is in a notebook: it chooses its progress bars when it is imported."""
    ipython = sys.modules.get("IPython")
    if ipython is None or "transformers" in sys.modules:
        return
    get_ipython = ipython.get_ipython
    ipython.get_ipython = _NotebookShell  # type: ignore[attr-defined]
    try:
        importlib.import_module("transformers.utils.import_utils").is_in_notebook()
    except (ImportError, AttributeError) as error:
        log(f"transformers not told of the notebook: {error}")
    finally:
        ipython.get_ipython = get_ipython  # type: ignore[attr-defined]


def stamps() -> dict[str, tuple[int, int]]:
    """Time and size of what tells that code has changed: this package's files and each distribution's record."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [
        os.path.join(folder, name) for folder, _, names in os.walk(package) for name in names if name.endswith(".py")
    ]
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder or "."):
                if name.endswith(".dist-info"):
                    paths.append(os.path.join(folder, name, "RECORD"))
                elif name.endswith((".pth", ".egg-link")):
                    paths.append(os.path.join(folder, name))
    return _stamps_of(paths)


def loose_files() -> list[str]:
    """The files of loaded modules that belong to no distribution and not to Python: editable installs, PYTHONPATH."""
    recorded = tuple(
        os.path.join(folder, "") for folder in {*sys.path, os.path.dirname(os.__file__)}
        if os.path.basename(folder) in ("site-packages", "dist-packages") or folder == os.path.dirname(os.__file__)
    )  # fmt: skip
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return sorted(file for file in files if isinstance(file, str) and not file.startswith(recorded))


def _stamps_of(paths: list[str]) -> dict[str, tuple[int, int]]:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


def unfit() -> str | None:
    """Why this process must not be forked, if so."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        names = {protocol.read(f"/proc/self/task/{task}/comm").strip() for task in os.listdir("/proc/self/task")}
        return f"the server has {threads} threads after its imports ({', '.join(sorted(names))})"
    torch = sys.modules.get("torch")
    if torch is not None:
        if torch.cuda.is_initialized():
            return "CUDA was initialised by the server's imports"
        # PyTorch tells only in a fork whether an earlier look at the devices has spoilt CUDA for forks.
        process = os.fork()
        if process == 0:
            os._exit(1 if getattr(torch.cuda, "_is_in_bad_fork", lambda: False)() else 0)
        if os.waitpid(process, 0)[1] != 0:
            return "CUDA was touched by the server's imports"
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{number}").startswith("/dev/nvidia-uvm"):
                return "CUDA was initialised by the server's imports"
    return None


# Serving


@dataclass
class Launch:
    """What a client asks a kernel to be."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    files: list[int]
    server: int


@dataclass
class Kernel:
    """A forked kernel, and the connection of the client that stands in for it."""

    process: int
    connection: socket.socket

    def signal(self, number: int) -> None:
        """Send a signal to the kernel and what it has started; before ``setsid``, to the kernel alone."""
        try:
            os.killpg(self.process, number)
        except ProcessLookupError:
            # Not reaped yet, so the number is still its own.
            os.kill(self.process, number)

    def has_ended(self) -> bool:
        """Whether it has ended and waits to be reaped."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self) -> int:
        """End what the kernel left in its process group and return its wait status."""
        # While the kernel is not reaped, its number cannot belong to another process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)
        return os.waitpid(self.process, 0)[1]


class Server:
    """Listens at ``path`` and forks a kernel for each launch; ``refusal`` says why it must not, if so."""

    def __init__(self, path: str, idle: float, before: dict[str, tuple[int, int]], refusal: str | None) -> None:
        self._path = path
        self._idle = idle
        self._before = before
        self._loose = _stamps_of(loose_files())
        self._refusal = refusal
        self._born = self._active = time.monotonic()
        self._kernels: dict[int, Kernel] = {}
        self._others: dict[int, socket.socket] = {}
        self._terminated = False
        self._wakeup, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_write, False)
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The caller holds the lock and found nobody listening, so a file that is there belongs to a killed server.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener.bind(path)
        self._inode = os.stat(path).st_ino
        self._listener.listen(128)

    def run(self) -> Launch | None:
        """Serve until there is nothing left to do. Returns None then, and the request in a forked kernel."""
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._terminate)
        while True:
            files = self._wait()
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
            self._reap()
            for file in files & (self._kernels.keys() | self._others.keys()):
                launch = self._hear(file)
                if launch is not None:
                    return launch
            if self._listener is not None and self._listener.fileno() in files:
                self._accept()
            if self._terminated:
                self._close()
                self._end_kernels()
            elif not self._kernels and time.monotonic() - self._active >= self._idle:
                self._close()
            if self._listener is None and not self._kernels:
                return None

    def _terminate(self, *_: Any) -> None:
        self._terminated = True

    def _wait(self) -> set[int]:
        """Wait for a client, a kernel's end, a signal or the end of the idle time; the files that have something."""
        # Not epoll: its state would be shared with the kernels.
        poll = select.poll()
        for file in [self._wakeup, *self._kernels, *self._others]:
            poll.register(file, select.POLLIN)
        if self._listener is not None:
            poll.register(self._listener, select.POLLIN)
        left = None if self._kernels else max(self._active + self._idle - time.monotonic(), 0) * 1000 + 1
        return {file for file, _ in poll.poll(left)}

    def _accept(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        if protocol.peer(connection)[1] != os.getuid():
            connection.close()
            return
        # A client that stops in the middle of a message must not hold up the others for long.
        connection.settimeout(10)
        self._others[connection.fileno()] = connection

    def _hear(self, file: int) -> Launch | None:
        """Take one message from a client. Returns the request in a forked kernel."""
        kernel = self._kernels.get(file)
        connection = kernel.connection if kernel else self._others.get(file)
        if connection is None:  # its kernel was reaped in this turn
            return None
        message, files = protocol.receive(connection)
        try:
            if message is None:
                if kernel:
                    self._end(kernel)
                else:
                    self._others.pop(file).close()
            elif kernel:
                kernel.signal(message["signal"])
            elif message["do"] == "launch":
                return self._launch(connection, message, files)
            elif message["do"] == "stop":
                self._close()
                self._terminated |= message["now"]
                self._reply(connection, {"status": "stopping", **self._state()})
            elif message["do"] == "status":
                self._reply(connection, {"status": "serving", **self._state()})
        finally:
            for received in files:
                os.close(received)
        return None

    def _state(self) -> dict[str, Any]:
        return {
            "process": os.getpid(),
            "kernels": [kernel.process for kernel in self._kernels.values()],
            "age": round(time.monotonic() - self._born, 1),
            "refusal": self._refusal,
            "log": protocol.beside(self._path, ".log"),
        }

    @staticmethod
    def _reply(connection: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            protocol.send(connection, message)

    def _launch(self, connection: socket.socket, message: dict[str, Any], files: list[int]) -> Launch | None:
        """Fork a kernel, unless the code has changed. Returns the request in the kernel and None in the server."""
        self._active = time.monotonic()
        if self._listener is None or self._is_stale():
            self._close()
            self._reply(connection, {"status": "stale"})
            return None
        # A manager that restarts a kernel kills its client first, and the new kernel binds the ports of the old one.
        self._end_deserted()
        if self._refusal is None:
            # Held back, so that no signal reaches the server's handlers in the kernel.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            server = os.getpid()
            try:
                process = os.fork()
            except OSError as error:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                self._reply(connection, {"status": "refused", "reason": f"the server cannot fork: {error}"})
                return None
            if process == 0:
                kept = [os.dup(file) for file in files]
                self._leave(mask)
                return Launch(message["arguments"], message["environment"], message["folder"], kept, server)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._kernels[connection.fileno()] = Kernel(process, self._others.pop(connection.fileno()))
            self._reply(connection, {"status": "launched", "process": process})
        else:
            self._reply(connection, {"status": "refused", "reason": self._refusal})
        return None

    def _is_stale(self) -> bool:
        now = stamps()
        changed = sorted(path for path in now.keys() | self._before.keys() if now.get(path) != self._before.get(path))
        loose = _stamps_of(list(self._loose))
        changed += sorted(path for path in self._loose if loose.get(path) != self._loose[path])
        if changed:
            log(f"{changed[0]} has changed; taking no more kernels")
        return bool(changed)

    def _leave(self, mask: set[int | signal.Signals]) -> None:
        """In a forked kernel: give up what belongs to the server."""
        assert self._listener is not None
        for connection in [self._listener, *self._others.values(), *(k.connection for k in self._kernels.values())]:
            connection.close()
        signal.set_wakeup_fd(-1)
        os.close(self._wakeup)
        os.close(self._wakeup_write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _reap(self) -> None:
        """Tell the clients of the kernels that have ended."""
        for kernel in [kernel for kernel in self._kernels.values() if kernel.has_ended()]:
            self._forget(kernel)

    def _forget(self, kernel: Kernel) -> None:
        status = kernel.reap()
        del self._kernels[kernel.connection.fileno()]
        self._reply(kernel.connection, {"ended": status})
        kernel.connection.close()
        self._active = time.monotonic()

    def _end(self, kernel: Kernel) -> None:
        """Kill a kernel whose client is gone, and wait for its end, so that its ports are free."""
        kernel.signal(signal.SIGKILL)
        deadline = time.monotonic() + _KILL_SECONDS
        while not kernel.has_ended():
            if time.monotonic() > deadline:
                return  # waits in the system for a device; it is reaped when that ends
            time.sleep(0.002)
        self._forget(kernel)

    def _end_deserted(self) -> None:
        """End the kernels whose clients are gone, before their turn comes in the loop."""
        for kernel in list(self._kernels.values()):
            # Asked first, since ``recv`` waits on a socket that has a timeout.
            poll = select.poll()
            poll.register(kernel.connection, select.POLLIN)
            if poll.poll(0):
                try:
                    gone = kernel.connection.recv(1, socket.MSG_PEEK) == b""
                except OSError:
                    gone = True
                if gone:
                    self._end(kernel)

    def _end_kernels(self) -> None:
        for kernel in self._kernels.values():
            kernel.signal(signal.SIGTERM)
        deadline = time.monotonic() + _TERMINATION_SECONDS
        while self._kernels and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.01)
        for kernel in list(self._kernels.values()):
            self._end(kernel)

    def _close(self) -> None:
        """Take no more clients: the next one starts another server."""
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._listener.close()
        self._listener = None


def serve(path: str, ready: int | None = None, lock: int | None = None) -> NoReturn:
    """Import, then serve at ``path`` until idle. ``ready`` is closed when it listens, ``lock`` held until then."""
    began = time.monotonic()
    if lock is None:
        lock = os.open(protocol.beside(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    names = (os.environ.get("POLYDETOX_KERNEL_PRELOAD") or ",".join(PRELOAD)).split(",")
    idle = float(os.environ.get("POLYDETOX_KERNEL_IDLE") or 120)
    _prepare_environment()
    os.chdir("/")
    before = stamps()
    gc.disable()
    variables = preload(names)
    refusal = unfit()
    # What is there now is never collected, so that no kernel's collection copies the pages that they share.
    gc.freeze()
    server = Server(path, idle, before, refusal)
    log(f"serving after {time.monotonic() - began:.1f} s" + (f", but no kernels: {refusal}" if refusal else ""))
    for file in (lock, ready):
        if file is not None:
            os.close(file)
    launch = server.run()
    if launch is not None:
        _become_kernel(launch, variables)
    log("ended")
    # Taking down some thousands of modules would take a second.
    os._exit(0)


def _prepare_environment() -> None:
    for name in list(os.environ):
        if name in protocol.THREAD_VARIABLES or name.startswith(("JPY_", "POLYDETOX_")):
            del os.environ[name]
    os.environ.update(_WHILE_IMPORTING)
    os.environ.setdefault("MPLBACKEND", _INLINE_BACKEND)


# Being a kernel


def _become_kernel(launch: Launch, variables: dict[str, str]) -> NoReturn:
    """Turn this fork into what ``python -m ipykernel_launcher <arguments>`` is; does not return.

    ``variables`` are those that the imports have set, as they would have in the notebook.
    """
    status = 1
    try:
        _take_over(launch, variables)
        from ipykernel import kernelapp

        preloaded = set(sys.modules)
        status = 0
        try:
            kernelapp.launch_new_instance()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        _finish(kernelapp.IPKernelApp.instance(), preloaded)
    except BaseException:
        status = 1
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(status)


def _take_over(launch: Launch, variables: dict[str, str]) -> None:
    """Take the client's session, files, environment, folder and arguments; seed the random generators afresh."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launch.server:
        os._exit(1)
    for number, file in enumerate(launch.files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(variables | launch.environment)
    os.chdir(launch.folder)
    time.tzset()
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.__stdout__.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    launcher = importlib.util.find_spec("ipykernel_launcher")
    sys.argv = [launcher.origin or "" if launcher else "", *launch.arguments]
    tempfile.tempdir = None  # chosen by TMPDIR at its first use
    _set_thread_counts()
    # Python's own generator seeds itself after a fork.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    gc.enable()


def _count(*names: str) -> int | None:
    """The first of these variables that holds a number of threads (OpenMP allows a list, one for each level)."""
    for name in names:
        first = os.environ.get(name, "").partition(",")[0].strip()
        if first.isdigit() and int(first):
            return int(first)
    return None


def _set_thread_counts() -> None:
    """Do what the libraries would have done with the kernel's variables when they were loaded."""
    if "threadpoolctl" not in sys.modules:
        return
    processors = len(os.sched_getaffinity(0))
    openmp = _count("OMP_NUM_THREADS")
    blas = min(_count("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS") or processors, processors)
    for library in sys.modules["threadpoolctl"].ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas":
            library.set_num_threads(blas)
        elif library.user_api == "openmp" and openmp:
            library.set_num_threads(openmp)
    torch_threads = openmp or _count("MKL_NUM_THREADS")
    if torch_threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(torch_threads)


def _finish(app: Any, preloaded: set[str]) -> None:
    """End as the interpreter does, but leave alone the modules that are shared with the server.

    The notebook's objects and the modules that it imported itself are released, so that files are flushed and
    finalisers run.
    """
    if app.control_thread is not None and app.control_thread.is_alive():
        # It may still be answering the request to shut down. ipykernel's exit function closes what it writes to before
        # it waits for it; a plain kernel, whose end takes longer, seldom meets that.
        app.control_thread.stop()
        app.control_thread.join(_TERMINATION_SECONDS)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    from IPython.core.interactiveshell import InteractiveShell

    if InteractiveShell.initialized():
        shell = InteractiveShell.instance()
        shell.user_ns.clear()
        shell.user_module.__dict__.clear()
    for name in set(sys.modules) - preloaded:
        del sys.modules[name]
    gc.collect()
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
