"""The command line: ``polydetox run | render | snapshot | data | push | open | execute``."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polydetox import __version__
from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.home import provide, usable

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where the work failed, 2 where the user can mend it."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    # What follows `--` are targets, which argparse would mix with Snakemake's options.
    end = arguments.index("--") if arguments[:1] == ["run"] and "--" in arguments else len(arguments)
    options, rest = parser.parse_known_args(arguments[:end])
    if rest and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest, options.targets = rest, arguments[end + 1 :]
    # Everything below names files relative to the checkout.
    try:
        if options.command != "execute":  # the stages of a run have the run's environment
            from polydetox.data.catalogue import make_environment_absolute

            make_environment_absolute()
        os.chdir(paths.root())
        runs = paths.runs()  # refuses a name that the workflow could not work with
        writes = ("render", "snapshot", "push", "execute")  # `run` finds out by its lock
        if options.command in writes and not usable(runs):
            raise UserError(f"{paths.relative(runs)}: cannot be written to; name another folder in POLYDETOX_RUNS")
        provide()
        return int(options.function(options) or 0)
    except UserError as error:
        print(f"polydetox: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("polydetox: stopped; the same command resumes from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who read the output, as `head` does, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _place(text: str) -> Path:
    """A file or folder as an argument names it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; name a file or folder")
    try:
        return paths.expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polydetox", description="Reproduce two papers on making language models less toxic."
    )
    parser.add_argument("--version", action="version", version=f"polydetox {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[..., Any], text: str, **more: Any) -> Callable[..., Any]:
        parser = commands.add_parser(name, help=text, **more)
        parser.set_defaults(function=function)
        if function in (_run, _render, _snapshot, _push, _execute):
            parser.add_argument("--profile", default="offline", help="a file of params/profiles/ (default: offline)")
        return parser.add_argument

    option = command("run", _run, "run a profile to the rendered report (calls Snakemake)",
                     usage="polydetox run [OPTION ...] [SNAKEMAKE'S OPTION ...] [--] [TARGET ...]",
                     epilog="Anything else is passed to Snakemake: -n, --default-resources, --forcerun, a target ...",
                     )  # fmt: skip
    option("-j", "--jobs", type=int, help="stages side by side (default: the CPU cores; on Slurm 100)")
    option("-e", "--executor", help="where the stages run: local (the default), slurm ...")
    option("--workflow-profile", metavar="FOLDER", help="Snakemake's settings (default: profiles/<executor>)")

    option = command("render", _render, "render the report from what has been run so far")
    option("--preview", action="store_true", help="use the preview renderer even where Quarto is")
    option("--pdf", action="store_true", help="make a PDF of the chapters as well; needs Quarto")
    option("--first", action="store_true", help="the early site on the profile's first languages, a preview")

    command("snapshot", _snapshot, "keep a finished run's figures for the cards of the page Extensions")

    option = command("data", _data, "the data sources: licence, address, and what to do to get each")
    option("action", nargs="?", choices=["fetch"], help="download a source, verify and unpack it")
    option("name", nargs="?", help="the source to fetch, as `polydetox data` lists it")
    option("--from", dest="given", type=_place, help="a file or folder that you have downloaded already")

    option = command("push", _push, "a tuned model with a card of its run's figures, to the Hugging Face Hub")
    option("model", help="as the profile lists it")
    option("--variant", help="which tuning, where the profile has several")
    option("--to", metavar="OWNER/NAME", help="the repository; made if it is not there")
    option("--public", action="store_true", help="make a new repository public (default: private)")
    option("--dry-run", action="store_true", help="write the folder only, upload nothing")

    option = command("open", _open, "a job of a run in Jupyter, with its parameters filled in")
    option("job", type=_place, help="its folder, or the notebook of one that failed")
    option("--to", type=_place, metavar="FOLDER", help="for the copy and what it writes")
    option("--no-start", action="store_true", help="write the notebook, and do not start Jupyter")

    option = command("execute", _execute, "execute one notebook (what the workflow calls)")
    option("notebook", type=Path)
    option("output", type=Path)
    option("--parameters", default="{}", help="a JSON object")
    option("--threads", type=int, default=1)
    return parser


def _execute(options: argparse.Namespace) -> None:
    from polydetox.execute import execute

    try:
        parameters = dict(json.loads(options.parameters))
    except (TypeError, ValueError) as error:
        raise UserError(f"--parameters: not valid JSON, or no object ({error})") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that papermill shuts its kernel down
    execute(options.notebook, options.output, parameters, profile=options.profile, threads=options.threads)


def _open(options: argparse.Namespace) -> int:
    from polydetox.execute import opened, start

    notebook = opened(options.job, options.to)
    print(f"the notebook: {paths.relative(notebook)}", flush=True)
    return 0 if options.no_start else start(notebook)


def _snapshot(options: argparse.Namespace) -> None:
    from polydetox.report.assemble import snapshot

    print("\n".join(paths.relative(file) for file in snapshot(options.profile)) or "the run has nothing for a card")


def _render(options: argparse.Namespace) -> None:
    from polydetox.core.locks import held
    from polydetox.core.params import load_profile
    from polydetox.report.rendering import PDF, render
    from polydetox.workflow import FIRST

    profile = load_profile(options.profile)
    if options.first and not profile.first:
        raise UserError(f"--first: params/profiles/{options.profile}.yaml has no languages under 'first:'")
    if (options.preview or options.first) and options.pdf:
        raise UserError("--pdf: the preview renderer of --preview and --first makes no PDF; leave out one or the other")
    name = options.profile + f"/{FIRST}" * options.first
    with held(paths.profile_run(name) / ".rendering"):  # the early site is rendered again while a run goes on
        index = render(name, preview=options.preview or options.first, pdf=options.pdf)
    print(f"the report: {index}")
    if options.pdf:
        print(f"as a PDF: {index.with_name(PDF)}")


def _data(options: argparse.Namespace) -> None:
    from polydetox.data.catalogue import source, table
    from polydetox.data.fetching import fetch

    if options.action is None:
        print(table())
    else:
        print(f"{source(options.name or '').title}: {fetch(options.name, options.given)}")


def _push(options: argparse.Namespace) -> None:
    from polydetox.publish import push

    folder, address = push(options.model, options.profile, options.variant, options.to, dry_run=options.dry_run,
                           private=not options.public)  # fmt: skip
    print(f"{paths.relative(folder)}: the checkpoint and its card (README.md)")
    print(f"uploaded: {address}" if address else "nothing was uploaded")


def _run(options: argparse.Namespace) -> int:
    from polydetox import cluster
    from polydetox.core.locks import held
    from polydetox.execute import RUN
    from polydetox.preflight import preflight, skipped
    from polydetox.quarto import failure_note
    from polydetox.workflow import FIRST, load

    plan_only = any(re.fullmatch(r"-[a-zA-Z]*n[a-zA-Z]*|--dry-?run", word) for word in options.rest)
    run = load(options.profile)
    if not plan_only:
        preflight(run)
    for line in skipped(run):
        print(f"polydetox: skipped: {line}", file=sys.stderr)
    settings, executor = _snakemake_profile(options.workflow_profile, options.executor)
    if executor != "local":
        cluster.check(executor)
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--workflow-profile", settings,
        *(["--executor", options.executor] if options.executor else []),
        *(["--cores" if executor == "local" else "--jobs", str(options.jobs)] if options.jobs else []),
        *(["--quiet", "rules", "reason", "host"] if plan_only else []),
        # Our own lock holds the profile; Snakemake's would have to be removed by hand after a kill.
        "--config", f"profile={options.profile}", "--nolock", *options.rest,
        *(["--slurm-jobname-prefix", cluster.job_prefix(options.profile)] if executor == "slurm" else []), "--",
    ]  # fmt: skip
    # The stages find `polydetox` beside this Python, whether or not its environment is activated.
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    this_run = f"{socket.gethostname()}:{os.getpid()}:{os.environ.get('SLURM_JOB_ID', '')}"
    environment = os.environ | {"PATH": beside, RUN: this_run}
    targets = [*options.targets, *(word for word in options.rest if "/" in word and not word.startswith("-"))]
    if plan_only:
        return subprocess.run([*command, *options.targets], env=environment).returncode or _plan(run)
    # What the early site takes first, and alone: other jobs would hold the cores that its training waits for.
    early = paths.site(f"{options.profile}/{FIRST}") / "index.html"
    soon = run.profile.first and executor == "local" and not (targets or options.rest or early.is_file())
    began = time.time()
    with held(paths.profile_run(options.profile) / ".running", f"profile {options.profile!r} is being run already"):
        if executor == "slurm":
            cluster.refuse_while_queued(options.profile)
        status = _supervise([*command, paths.relative(early)], environment) if soon else 0
        status = status or _supervise([*command, *options.targets], environment)
    if status:
        print("polydetox: not finished; mend this, and the same command resumes from here", file=sys.stderr)
        return 1
    index = paths.site(options.profile) / "index.html"
    if index.is_file() and not targets:
        print(f"\nDone in {(time.time() - began) / 60:.1f} minutes. The report:\n  {index}")
        if note := failure_note(options.profile):
            print(note)
    return 0


def _snakemake_profile(folder: str | None, executor: str | None) -> tuple[str, str]:
    """The folder of Snakemake's settings, and the executor; ``none`` where none are shipped for it."""
    from polydetox.core.yaml_files import read_yaml

    named = folder or executor or "local"
    for place in (Path(named), Path("profiles") / named):
        for file in (place / "config.yaml", place / "config.v8+.yaml"):
            if file.is_file():
                said = read_yaml(file) or {}
                if not isinstance(said, dict):
                    raise UserError(f"{file}: expected keys and values, as in profiles/local")
                return str(place), executor or str(said.get("executor", "local"))
    if folder not in (None, "none"):
        raise UserError(f"--workflow-profile {named}: no config.yaml there")
    return "none", executor or named


def _plan(run: Any) -> int:
    """Print the licences of what a run uses, and what is missing before it can start; 1 where anything is."""
    from polydetox.preflight import licences, problems

    missing = problems(run)
    for title, lines in (("Licences:", licences(run.profile)), ("Missing before this can run:", missing)):
        if lines:
            print("\n  ".join(["", title, *lines]))
    return int(bool(missing))


def _supervise(command: list[str], environment: dict[str, str]) -> int:
    """Run Snakemake: a closed terminal or the death of this process interrupts it, SIGTERM lets it end its jobs."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a script starts the command in the background
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
            if os.getppid() != parent:
                os._exit(1)

    def hang_up(*_: object) -> None:
        process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    process = subprocess.Popen(command, env=environment, preexec_fn=prepare)
    for number, handler in ((signal.SIGTERM, lambda *_: process.terminate()), (signal.SIGHUP, hang_up)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal has sent it the same signal
        raise
