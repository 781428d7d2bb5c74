"""The forking kernel, through jupyter_client, nbclient and papermill as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jupyter_client
import nbclient
import nbformat
import papermill
import pytest

from polydetox.kernel import spec

if not sys.platform.startswith("linux"):
    pytest.skip("kernels are forked on Linux only; elsewhere they are plain ones", allow_module_level=True)

from polydetox.kernel import client, protocol

LIBRARY = Path(protocol.__file__).parents[2]


class Batch:
    """A kernelspec and a folder of sockets of their own; the environment of the tests is the clients'."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, preload: str = "json,numpy") -> None:
        # pytest's folders have names too long for a socket's address.
        self.runtime = Path(tempfile.mkdtemp(prefix="polydetox-test-"))
        self.work = folder / "work"
        self.work.mkdir()
        spec.install(folder)
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        patch.setenv("XDG_RUNTIME_DIR", str(self.runtime))
        patch.setenv("PYTHONPATH", str(LIBRARY))
        patch.setenv("POLYDETOX_KERNEL_PRELOAD", preload)

    def command(self, *arguments: str) -> str:
        """What ``python -m polydetox.kernel`` prints."""
        command = [sys.executable, "-m", "polydetox.kernel", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=self.work).stdout

    def close(self) -> None:
        self.command("stop", "--now")
        shutil.rmtree(self.runtime)

    def servers(self) -> list[int]:
        """The processes of the servers that listen."""
        return [int(line.split()[1].rstrip(":")) for line in self.command("status").splitlines()]

    def sockets(self) -> list[Path]:
        return list(self.runtime.rglob("*.sock"))

    def run(self, *cells: str) -> list[str]:
        """Execute a notebook; the text that each cell printed."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        resources = {"metadata": {"path": str(self.work)}}
        nbclient.NotebookClient(notebook, kernel_name="polydetox", timeout=30, resources=resources).execute()
        return ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]


class Session:
    """A kernel that is driven by hand."""

    def __init__(self, batch: Batch, **options: object) -> None:
        self.manager = jupyter_client.KernelManager(kernel_name="polydetox")
        self.manager.start_kernel(cwd=str(batch.work), **options)
        self.process = self.manager.provisioner.process
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=20)

    def ask(self, code: str) -> str:
        """Run a cell; what it printed to stdout, or the name of its error."""
        printed: list[str] = []

        def keep(message: dict) -> None:
            content = message["content"]
            printed.append(content.get("text", "") if content.get("name") == "stdout" else content.get("ename", ""))

        self.client.execute_interactive(code, output_hook=keep, timeout=20, allow_stdin=False)
        return "".join(printed)

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    with pytest.MonkeyPatch.context() as patch:
        batch = Batch(tmp_path_factory.mktemp("kernel"), patch)
        yield batch
        batch.close()


@pytest.fixture
def session(batch: Batch) -> Iterator[Session]:
    session = Session(batch)
    yield session
    session.close()


@pytest.fixture
def own_batch(tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Batch]:
    """A batch whose server is not shared with the other tests."""
    own = Batch(tmp_path, monkeypatch, preload="json")
    yield own
    own.close()


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def soon(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether a condition comes true in a few seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# What a notebook sees


def test_cells_run_in_a_fork_of_the_server(batch: Batch) -> None:
    output = batch.run(
        "import os, sys; print(os.getppid(), 'numpy' in sys.modules)",
        "print(os.getcwd(), sys.argv[1], os.getpgid(0) == os.getsid(0) == os.getpid())",
        "import subprocess; print(subprocess.run(['echo', 'from a process'], capture_output=True, text=True).stdout)",
        "print(__name__, sys.stdin.read() == '', '' in sys.path, sys.path.count(''))",
    )
    assert output[0].split() == [str(batch.servers()[0]), "True"]
    assert output[1].split() == [str(batch.work), "-f", "True"]
    assert output[2].strip() == "from a process"
    assert output[3].split() == ["__main__", "True", "True", "1"]


def test_papermill_takes_it_by_name(batch: Batch, tmp_path: Path) -> None:
    parameters = nbformat.v4.new_code_cell("model = 'none'", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell("print(model)")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    executed = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"model": "mgpt"}, kernel_name="polydetox", progress_bar=False
    )
    assert executed.cells[-1].outputs[0].text == "mgpt\n"


def test_an_error_has_its_traceback(batch: Batch) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError) as raised:
        batch.run("def broken():\n    return 1 / 0", "broken()")
    assert raised.value.ename == "ZeroDivisionError"
    assert "return 1 / 0" in re.sub(r"\x1b\[[\d;]*m", "", str(raised.value))


def test_nothing_leaks_into_the_next_notebook(batch: Batch) -> None:
    show = (
        "import json, os, random, sys, numpy, signal, tempfile, logging\n"
        "print(json.dumps({'global': 'left' in globals(), 'variable': os.environ.get('LEFT'), 'folder': os.getcwd(),\n"
        "  'attribute': hasattr(json, 'left'), 'path': 'left' in sys.path, 'module': 'fractions_left' in sys.modules,\n"
        "  'handler': str(signal.getsignal(signal.SIGUSR1)), 'temporary': tempfile.gettempdir(),\n"
        "  'level': logging.getLogger().level, 'printing': numpy.get_printoptions()['precision'],\n"
        "  'server': os.getppid()}))\n"
        "print(random.random(), numpy.random.rand())"
    )
    leave = (
        "left = 1; os.environ['LEFT'] = '1'; os.chdir('/'); json.left = 1; sys.path.append('left')\n"
        "sys.modules['fractions_left'] = json; signal.signal(signal.SIGUSR1, signal.SIG_IGN); tempfile.tempdir = '/'\n"
        "logging.getLogger().setLevel(5); numpy.set_printoptions(precision=2); random.seed(0); numpy.random.seed(0)"
    )
    first = batch.run(show, leave)[0].splitlines()
    second = batch.run(show)[0].splitlines()
    assert json.loads(first[0]) == json.loads(second[0])
    assert not any(json.loads(second[0])[key] for key in ("global", "variable", "attribute", "path", "module"))
    # Random generators do not go on from one shared state.
    assert set(first[1].split()).isdisjoint(second[1].split())
    # Within one notebook all of it stays, so every one of these looks would have told of a leak.
    _, _, leaked = batch.run(show, leave, show)
    kept, clean = json.loads(leaked.splitlines()[0]), json.loads(second[0])
    assert [key for key in clean if kept[key] == clean[key]] == ["server"]


def test_the_environment_is_the_clients(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch.run("1")
    server = batch.servers()
    monkeypatch.setenv("LATER", "set after the server's start")
    monkeypatch.setenv("TMPDIR", str(batch.work))
    output = batch.run("import os, tempfile; print(os.environ['LATER'], tempfile.gettempdir(), os.getppid())")
    assert output == [f"set after the server's start {batch.work} {server[0]}\n"]


def test_input_fails_as_with_ipykernel(session: Session) -> None:
    assert session.ask("input('name')") == "StdinNotImplementedError"


def test_files_and_finalisers_are_finished_at_the_end(batch: Batch) -> None:
    (batch.work / "held.py").write_text("file = open('held.txt', 'w')\nfile.write('in a module')\n")
    batch.run(
        "file = open('unclosed.txt', 'w'); file.write('in a variable'); import held",
        "import atexit, pathlib; atexit.register(lambda: pathlib.Path('atexit.txt').write_text('at exit'))",
    )
    texts = {name: (batch.work / f"{name}.txt").read_text() for name in ("unclosed", "held", "atexit")}
    assert texts == {"unclosed": "in a variable", "held": "in a module", "atexit": "at exit"}


def test_torch_is_seeded_and_has_the_threads_of_the_client(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "torch")
    look = "import os, torch; print(os.getppid(), torch.get_num_threads(), torch.rand(1).item(), torch.initial_seed())"
    seen = []
    for count in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        seen.append(own_batch.run(look)[0].split())
    assert seen[0][0] == seen[1][0]
    assert [row[1] for row in seen] == ["1", "2"]
    assert seen[0][2:] != seen[1][2:]
    monkeypatch.delenv("OMP_NUM_THREADS")
    plain = subprocess.run([sys.executable, "-c", "import torch; print(torch.get_num_threads())"], capture_output=True)
    assert own_batch.run(look)[0].split()[1] == plain.stdout.decode().strip()


def test_threads_work_in_a_kernel(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of threads do not survive a fork; those of torch and tokenizers must start in the kernel, twice over."""
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "torch,torch.utils.data,tokenizers")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    use = (
        "import os, torch\n"
        "from tokenizers import Tokenizer, models, pre_tokenizers\n"
        "x = torch.randn(600, 600, requires_grad=True); (x @ x).exp().sum().backward()\n"
        "words = Tokenizer(models.WordLevel({'a': 0, '?': 1}, unk_token='?'))\n"
        "words.pre_tokenizer = pre_tokenizers.Whitespace()\n"
        "encoded = words.encode_batch(['a b a'] * 2000)\n"
        "loaded = sum(len(batch) for batch in torch.utils.data.DataLoader(range(40), batch_size=4, num_workers=2))\n"
        "print(torch.get_num_threads(), tuple(x.grad.shape), len(encoded), loaded, os.getppid())"
    )
    for _ in range(2):
        assert own_batch.run(use)[0].split() == ["2", "(600,", "600)", "2000", "40", str(own_batch.servers()[0])]


# How it behaves as a process


def test_the_heart_beats_while_a_cell_runs(session: Session) -> None:
    session.client.hb_channel.time_to_dead = 0.3
    session.client.execute("total = 0\nwhile True: total += 1")
    time.sleep(1.5)
    assert session.client.hb_channel.is_beating()
    session.manager.interrupt_kernel()
    assert session.ask("print('goes on')") in ("goes on\n", "")


def test_interrupt(session: Session) -> None:
    for cell in ("import time; time.sleep(20)", "import subprocess; subprocess.run(['sleep', '20'])"):
        # ipykernel turns away what comes right after a failed cell, unless that cell says not to.
        request = session.client.execute(cell, stop_on_error=False)
        time.sleep(0.5)
        began = time.monotonic()
        session.manager.interrupt_kernel()
        reply = session.client.get_shell_msg(timeout=5)
        assert reply["parent_header"]["msg_id"] == request
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert time.monotonic() - began < 3
    assert session.ask("print('goes on')") == "goes on\n"


@pytest.mark.parametrize("now", [True, False])
def test_restart(session: Session, now: bool) -> None:
    first = session.ask("import os; left = 1; print(os.getpid())")
    session.manager.restart_kernel(now=now)
    session.client.wait_for_ready(timeout=20)
    second = session.ask("import os; print(os.getpid(), 'left' in globals(), os.getppid())").split()
    assert second[0] != first.strip()
    assert second[1] == "False"
    assert not alive(int(first))
    assert session.client.hb_channel.is_beating()


def test_shutdown_ends_with_status_0(batch: Batch, session: Session) -> None:
    kernel = int(session.ask("import os; print(os.getpid())"))
    session.client.shutdown()
    assert session.process.wait(timeout=10) == 0
    assert not alive(kernel)
    assert alive(batch.servers()[0])


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os._exit(3)", 3),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    ],
    ids=["killed", "exit", "fault"],
)
def test_a_crash_is_the_clients(session: Session, cell: str, status: int) -> None:
    session.client.execute(cell)
    assert session.process.wait(timeout=10) == status
    assert not session.manager.is_alive()


def test_nbclient_reports_a_dead_kernel(batch: Batch) -> None:
    with pytest.raises(nbclient.exceptions.DeadKernelError):
        batch.run("import os; os.kill(os.getpid(), 9)")


def test_a_killed_client_takes_the_kernel_and_what_it_started_along(session: Session) -> None:
    code = "import os, subprocess; print(os.getpid(), subprocess.Popen(['sleep', '60']).pid)"
    processes = [int(word) for word in session.ask(code).split()]
    session.client.execute("while True: pass")
    os.kill(session.process.pid, signal.SIGKILL)
    assert soon(lambda: not any(map(alive, processes)), 2)


def test_a_kernel_ends_when_its_manager_is_killed(batch: Batch) -> None:
    program = (
        "import jupyter_client, time\n"
        "manager = jupyter_client.KernelManager(kernel_name='polydetox'); manager.start_kernel()\n"
        "client = manager.client(); client.start_channels(); client.wait_for_ready()\n"
        "client.execute_interactive('import os; print(os.getpid())'); time.sleep(60)"
    )
    manager = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert manager.stdout is not None
    kernel = int(manager.stdout.readline())
    assert alive(kernel)
    manager.kill()
    manager.communicate()
    assert soon(lambda: not alive(kernel))


def test_kernels_end_with_a_killed_server(own_batch: Batch) -> None:
    session = Session(own_batch, stderr=subprocess.PIPE)
    code = "import os, subprocess; print(os.getpid(), subprocess.Popen(['sleep', '60']).pid)"
    processes = [int(word) for word in session.ask(code).split()]
    os.kill(own_batch.servers()[0], signal.SIGKILL)
    assert session.process.wait(timeout=5) == 1
    assert b"the server was killed" in session.process.stderr.read()
    assert soon(lambda: not any(map(alive, processes)), 2)
    session.close()
    # Its socket is left; the next client finds nobody there and starts another server.
    assert own_batch.run("print('again')") == ["again\n"]


# The server


def test_the_socket_is_private(batch: Batch) -> None:
    batch.run("1")
    folder = batch.runtime / "polydetox"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in folder.iterdir() if path.suffix != ".sock")
    assert len(batch.sockets()) == 1


def test_a_folder_that_others_may_enter_is_not_used(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(own_batch.runtime))
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    own = own_batch.runtime / f"polydetox-{os.getuid()}"
    assert protocol.folder() == str(own)
    own.chmod(0o755)
    with pytest.raises(OSError, match="0700"):
        protocol.folder()
    own.rmdir()
    (own_batch.runtime / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(own_batch.runtime / "elsewhere")
    with pytest.raises(OSError, match="0700"):
        protocol.folder()
    monkeypatch.setenv("TMPDIR", str(own_batch.runtime / ("long" * 20)))
    with pytest.raises(OSError, match="too long"):
        protocol.folder()


def test_what_is_read_at_import_has_a_server_of_its_own(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    before = protocol.address()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert protocol.address() == before
    monkeypatch.setenv("HF_HOME", "/elsewhere")
    assert protocol.address() != before


def test_clients_that_come_together_start_one_server(own_batch: Batch) -> None:
    managers = [jupyter_client.KernelManager(kernel_name="polydetox") for _ in range(4)]
    servers = set()
    for manager in managers:
        manager.start_kernel()
    for manager in managers:
        kernel = manager.client()
        kernel.start_channels()
        kernel.wait_for_ready(timeout=20)
        kernel.execute_interactive(
            "import os; print(os.getppid())", output_hook=lambda m: servers.add(m["content"].get("text"))
        )
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)
    assert servers - {None} == {f"{own_batch.servers()[0]}\n"}


def test_changed_code_gets_a_new_server(own_batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "lib" / "polydetox"
    (copy / "kernel").mkdir(parents=True)
    for name in ("__init__", "errors", "kernel/__init__", "kernel/__main__", "kernel/client", "kernel/protocol",
                 "kernel/server"):  # fmt: skip
        (copy / f"{name}.py").write_text((LIBRARY / "polydetox" / f"{name}.py").read_text())
    (copy / "work.py").write_text("answer = 1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "polydetox.work")
    look = "import os, polydetox.work; print(os.getppid(), polydetox.work.answer)"
    first, same = own_batch.run(look)[0].split(), own_batch.run(look)[0].split()
    assert first == same == [first[0], "1"]
    session = Session(own_batch)
    (copy / "work.py").write_text("answer = 22\n")
    second = own_batch.run(look)[0].split()
    assert second[0] != first[0]
    assert second[1] == "22"
    # The old server waits for its last kernel.
    assert session.ask("print('still here')") == "still here\n"
    assert alive(int(first[0]))
    session.close()
    assert soon(lambda: not alive(int(first[0])))
    assert own_batch.servers() == [int(second[0])]


def test_an_idle_server_ends(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDETOX_KERNEL_IDLE", "0.3")
    server = int(own_batch.run("import os, time; time.sleep(0.6); print(os.getppid())")[0])
    assert soon(lambda: not alive(server))
    assert own_batch.sockets() == []
    assert own_batch.run("print('again')") == ["again\n"]


def test_stop_leaves_nothing(own_batch: Batch) -> None:
    session = Session(own_batch)
    kernel, server = (int(word) for word in session.ask("import os; print(os.getpid(), os.getppid())").split())
    # A server with a kernel takes no more, and ends after it.
    assert client.stop(0.1, now=False) is False
    assert own_batch.sockets() == []
    assert alive(kernel)
    session.client.shutdown()
    assert soon(lambda: not alive(server))
    session.close()
    own_batch.run("1")
    server = own_batch.servers()[0]
    assert client.stop(5, now=False) is True
    assert soon(lambda: not alive(server), 1)
    assert own_batch.sockets() == []
    assert own_batch.servers() == []


def test_stop_now_ends_the_kernels(own_batch: Batch) -> None:
    session = Session(own_batch)
    kernel = int(session.ask("import os; print(os.getpid())"))
    assert client.stop(5, now=True) is True
    assert not alive(kernel)
    assert session.process.wait(timeout=5) == -signal.SIGTERM
    session.close()


# The plain kernel in its place


def plain_kernel(batch: Batch) -> str:
    """Run a cell in a kernel that must not be forked; what its client wrote to stderr."""
    with open(batch.work / "stderr", "wb") as stderr:
        session = Session(batch, stderr=stderr)
    program = session.ask("import os, pathlib; print(pathlib.Path('/proc/self/cmdline').read_text())")
    assert session.ask(f"print(os.getppid() == {os.getpid()})") == "True\n"
    assert "ipykernel_launcher" in program
    session.close()
    return (batch.work / "stderr").read_text()


def test_no_private_folder_gives_the_plain_kernel(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_batch.work / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own_batch.work / "file"))
    monkeypatch.setenv("TMPDIR", str(own_batch.work / "file"))
    assert "no private folder" in spec.why_not()
    assert "using the plain kernel" in plain_kernel(own_batch)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import threading; threading.Thread(target=__import__('time').sleep, args=(60,), daemon=True).start()",
         "2 threads"),
        ("import torch; torch.cuda.is_initialized = lambda: True", "CUDA was initialised"),
        ("import os; os._exit(1)", "did not start"),
        ("import os, time; open(f'{__file__}.process', 'w').write(str(os.getpid())); time.sleep(60)",
         "still starting"),
    ],
    ids=["threads", "cuda", "crash", "slow"],
)  # fmt: skip
def test_a_server_that_cannot_serve_gives_the_plain_kernel(
    own_batch: Batch, monkeypatch: pytest.MonkeyPatch, module: str, reason: str
) -> None:
    (own_batch.work / "unfit.py").write_text(module)
    monkeypatch.setenv("PYTHONPATH", f"{LIBRARY}:{own_batch.work}")
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "unfit")
    monkeypatch.setenv("POLYDETOX_KERNEL_WAIT", "1" if reason == "still starting" else "30")
    told = plain_kernel(own_batch)
    assert reason in told
    assert "using the plain kernel" in told
    if reason == "still starting":
        # It would import for a minute.
        os.kill(int((own_batch.work / "unfit.py.process").read_text()), signal.SIGKILL)


def test_a_missing_module_is_left_out(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "no_such_module,json:no_such_attribute,numpy")
    assert own_batch.run("import sys; print('numpy' in sys.modules)") == ["True\n"]
    log = next(own_batch.runtime.rglob("*.log")).read_text()
    assert "not preloaded: no_such_module" in log
    assert "not preloaded: json:no_such_attribute" in log


def test_a_function_is_called_once_for_all_notebooks(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_batch.work / "first.py").write_text("import os\nread = []\ndef use():\n    read.append(os.getpid())\n")
    monkeypatch.setenv("PYTHONPATH", f"{LIBRARY}:{own_batch.work}")
    monkeypatch.setenv("POLYDETOX_KERNEL_PRELOAD", "first:use()")
    look = "import os, first; print(first.read == [os.getppid()]); first.read.append(0)"
    assert [own_batch.run(look) for _ in range(2)] == [["True\n"], ["True\n"]]


def test_a_variable_gives_the_plain_kernel(own_batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec.why_not() == ""
    monkeypatch.setenv("POLYDETOX_KERNEL_PLAIN", "1")
    assert "POLYDETOX_KERNEL_PLAIN" in spec.why_not()
    assert "polydetox kernel" not in plain_kernel(own_batch)
    assert own_batch.servers() == []


def test_on_another_system_the_client_is_the_plain_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import polydetox.kernel.__main__ as program

    started = []
    monkeypatch.setattr(sys, "argv", ["polydetox.kernel"])
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("runpy.run_module", lambda name, **_: started.append((name, sys.argv[1:])))
    with pytest.raises(SystemExit):
        program.main(["launch", "-f", "connection.json"])
    assert started == [("ipykernel_launcher", ["-f", "connection.json"])]
    assert "not on win32; using the plain kernel" in capsys.readouterr().err
    assert "on Linux only" in spec.why_not()


# The kernelspec


def test_the_kernelspec_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = spec.ensure_installed(tmp_path)
    written = (folder / "kernel.json").stat()
    assert spec.ensure_installed(tmp_path) == folder == spec.location(tmp_path)
    assert (folder / "kernel.json").stat() == written
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    found = jupyter_client.kernelspec.KernelSpecManager().get_kernel_spec("polydetox")
    assert found.argv[:4] == [sys.executable, "-m", "polydetox.kernel", "launch"]
    assert found.language == "python"
    assert spec.uninstall(tmp_path) is True
    assert spec.uninstall(tmp_path) is False


def test_the_client_imports_little() -> None:
    program = (
        "import sys; before = set(sys.modules); import polydetox.kernel.__main__, polydetox.kernel.client;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    names = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert {"argparse", "asyncio", "subprocess", "logging", "numpy", "torch", "zmq", "IPython"}.isdisjoint(names)
