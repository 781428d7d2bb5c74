"""The command line: ``polydetox doctor | run | render | data | push | open | execute``."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from polydetox import __version__
from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.home import provide, usable


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 where the work failed, 2 where the user can mend it."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    # What follows `--` are targets, which argparse would mix with Snakemake's options.
    end = arguments.index("--") if arguments[:1] == ["run"] and "--" in arguments else len(arguments)
    options, rest = parser.parse_known_args(arguments[:end])
    if rest and options.command != "run":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.targets = arguments[end + 1 :]
    # Everything below names files relative to the checkout.
    try:
        if options.command != "doctor":
            if options.command != "execute":  # the stages of a run have the run's environment
                from polydetox.data.catalogue import make_environment_absolute

                make_environment_absolute()
            os.chdir(paths.root())
            runs = paths.runs()  # refuses a name that the workflow could not work with
            if options.command in ("render", "push", "execute") and not usable(runs):  # `run` finds out by its lock
                raise UserError(f"{paths.relative(runs)}: cannot be written to; name another folder in POLYDETOX_RUNS")
        provide()
        return int(options.function(options, rest) or 0)
    except UserError as error:
        print(f"polydetox: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("polydetox: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polydetox", description="Reproduce two papers on making language models less toxic."
    )
    parser.add_argument("--version", action="version", version=f"polydetox {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what is installed and usable, and what each missing part needs")
    doctor.set_defaults(function=_doctor)

    run = commands.add_parser(
        "run",
        help="run a profile to the rendered report (calls Snakemake)",
        usage="polydetox run [OPTION ...] [SNAKEMAKE'S OPTION ...] [--] [TARGET ...]",
        epilog="Anything else is passed to Snakemake: -n, --default-resources, --forcerun, a target ...",
    )
    run.add_argument("--profile", default="offline", help="a file of params/profiles/ (default: offline)")
    run.add_argument("-j", "--jobs", type=int, help="stages side by side (default: the CPU cores; on Slurm 100)")
    run.add_argument("-e", "--executor", help="where the stages run: local (the default), slurm ...")
    run.add_argument("--workflow-profile", metavar="FOLDER", help="Snakemake's settings (default: profiles/<executor>)")
    run.set_defaults(function=_run)

    render = commands.add_parser("render", help="render the report from what has been run so far")
    render.add_argument("--profile", default="offline", help="a file of params/profiles/ (default: offline)")
    renderer = render.add_mutually_exclusive_group()
    renderer.add_argument("--preview", action="store_true", help="use the preview renderer even where Quarto is")
    renderer.add_argument("--pdf", action="store_true", help="make a PDF of the chapters as well; needs Quarto")
    render.set_defaults(function=_render)

    data = commands.add_parser("data", help="the data sources: licence, address, and what to do to get each")
    actions = data.add_subparsers(dest="action")
    fetching = actions.add_parser("fetch", help="download a source, verify it, and unpack it")
    fetching.add_argument("name", help="as `polydetox data` lists it")
    fetching.add_argument(
        "--from", dest="given", type=paths.expanded, help="a file or folder that you have downloaded already"
    )
    actions.add_parser("check", help="read every source that is at hand, and say what it holds")
    data.set_defaults(function=_data)

    push = commands.add_parser("push", help="a tuned model with a card of its run's figures, to the Hugging Face Hub")
    push.add_argument("model", help="as the profile lists it")
    push.add_argument("--profile", default="offline", help="a file of params/profiles/ (default: offline)")
    push.add_argument("--variant", help="which tuning, where the profile has several")
    push.add_argument("--to", metavar="OWNER/NAME", help="the repository; made if it is not there")
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.add_argument("--dry-run", action="store_true", help="write the folder only, upload nothing")
    push.set_defaults(function=_push)

    opening = commands.add_parser("open", help="a job of a run in Jupyter, with its parameters filled in")
    opening.add_argument("job", type=paths.expanded, help="its folder, or the notebook of one that failed")
    opening.add_argument("--to", type=paths.expanded, metavar="FOLDER", help="for the copy and what it writes")
    opening.add_argument("--no-start", action="store_true", help="write the notebook, and do not start Jupyter")
    opening.set_defaults(function=_open)

    for command in (render, _add_execute(commands)):
        command.add_argument("--log", type=Path, help="write what is printed to this file, and one line at the end")
    return parser


def _add_execute(commands: Any) -> argparse.ArgumentParser:
    execute: argparse.ArgumentParser = commands.add_parser(
        "execute", help="execute one notebook (what the workflow calls)"
    )
    execute.add_argument("notebook", type=Path)
    execute.add_argument("output", type=Path)
    execute.add_argument("--profile", default="offline")
    execute.add_argument("--parameters", default="{}", help="a JSON object")
    execute.add_argument("--threads", type=int, default=1)
    execute.set_defaults(function=_execute)
    return execute


def _doctor(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.doctor import report

    print(report())
    return 0


def _execute(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.execute import execute, logged, read_parameters, stage_title

    parameters = read_parameters(options.parameters)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that papermill shuts its kernel down
    with logged(options.log, stage_title(options.profile, options.output)):
        execute(options.notebook, options.output, parameters, profile=options.profile, threads=options.threads)
    return 0


def _open(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.opening import opened, start

    notebook = opened(options.job, options.to)
    print(f"the notebook: {paths.relative(notebook)}", flush=True)
    return 0 if options.no_start else start(notebook)


def _render(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.core.params import load_profile
    from polydetox.execute import logged
    from polydetox.report.pdf import FILE as PDF
    from polydetox.report.rendering import render

    load_profile(options.profile)
    with logged(options.log, "render"):
        index = render(options.profile, preview=options.preview, pdf=options.pdf)
        print(f"the report: {index}")
        if options.pdf:
            print(f"as a PDF: {index.with_name(PDF)}")
    return 0


def _data(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.data.catalogue import source, sources, table
    from polydetox.data.fetching import fetch

    if options.action == "fetch":
        print(f"{source(options.name).title}: {fetch(options.name, options.given)}")
        return 0
    if options.action is None:
        print(table())
        return 0
    return max([_check(name) for name in sources()])


def _push(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox.publish import push

    folder, address = push(options.model, options.profile, options.variant, options.to, dry_run=options.dry_run,
                           private=not options.public)  # fmt: skip
    print(f"{paths.relative(folder)}: the checkpoint and its card (README.md)")
    print(f"uploaded: {address}" if address else "nothing was uploaded")
    return 0


def _check(name: str) -> int:
    """Say what one source holds; 1 where it is broken, 0 where it is whole or not at hand."""
    from polydetox.data.check import check_source

    try:
        print(f"{name}: {check_source(name) or 'not at hand'}")
    except UserError as error:
        print(f"{name}: BROKEN: {error}")
        return 1
    return 0


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    from polydetox import cluster
    from polydetox.execute import RUN, report_failures, this_run
    from polydetox.preflight import licences, preflight, problems, skipped
    from polydetox.quarto import failure_note
    from polydetox.workflow import load, run_lock

    plan_only = any(re.fullmatch(r"-[a-zA-Z]*n[a-zA-Z]*|--dry-?run", word) for word in rest)
    run = load(options.profile)
    if not plan_only:
        preflight(run)
    for line in skipped(run):
        print(f"polydetox: skipped: {line}", file=sys.stderr)
    settings, executor = _snakemake_profile(options.workflow_profile or options.executor or "local")
    executor = options.executor or executor
    if executor != "local":
        paths.check_for_cluster()
    if executor == "slurm":
        cluster.check_plugin()
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--workflow-profile", settings,
        *(["--executor", options.executor] if options.executor else []),
        *(["--cores" if executor == "local" else "--jobs", str(options.jobs)] if options.jobs else []),
        *(["--quiet", "rules", "reason", "host"] if plan_only else []),
        # Our own lock holds the profile; Snakemake's would have to be removed by hand after a kill.
        "--config", f"profile={options.profile}", "--nolock", *rest,
        *(["--slurm-jobname-prefix", cluster.job_prefix(options.profile)] if executor == "slurm" else []),
        "--", *options.targets,
    ]  # fmt: skip
    # The stages find `polydetox` beside this Python, whether or not its environment is activated.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        RUN: this_run(),
    }
    targets = [*options.targets, *(word for word in rest if "/" in word and not word.startswith("-"))]
    if plan_only:
        missing = problems(run)
        status = subprocess.run(command, env=environment).returncode
        print(f"\nStill to run, by estimate (params/rates.yaml):\n{_estimate(options.profile, targets)}")
        for title, lines in (("Licences:", licences(options.profile)), ("Missing before this can run:", missing)):
            print("\n  ".join(["", title, *lines]) if lines else "", end="\n" if lines else "")
        return status or int(bool(missing))
    began = time.time()
    with run_lock(options.profile):
        if executor == "slurm":
            cluster.refuse_while_queued(options.profile)
        status = _supervise(command, environment)
    if status:
        for line in report_failures(options.profile, began):
            print(f"polydetox: {line}", file=sys.stderr)
        print("polydetox: not finished; mend this, and the same command goes on from here", file=sys.stderr)
        return 1
    index = paths.site(options.profile) / "index.html"
    if index.is_file() and not targets:
        print(f"\nDone in {(time.time() - began) / 60:.1f} minutes. The report:\n  {index}")
        if note := failure_note(options.profile):
            print(note)
    return 0


def _snakemake_profile(named: str) -> tuple[str, str]:
    """The folder of Snakemake's settings, and the executor that they choose; ``none`` where none are shipped for it."""
    import yaml

    for folder in (Path(named), Path("profiles") / named):
        for file in (folder / "config.yaml", folder / "config.v8+.yaml"):
            if file.is_file():
                return str(folder), str((yaml.safe_load(file.read_text("utf-8")) or {}).get("executor", "local"))
    if "/" in named:
        raise UserError(f"--workflow-profile {named}: no config.yaml there")
    return "none", named


def _estimate(profile: str, targets: list[str]) -> str:
    """What the stages that a run would start take, or why that cannot be told."""
    from snakemake.exceptions import WorkflowError

    from polydetox.planning import jobs_of, table

    try:
        return table(jobs_of(profile, targets))
    except (UserError, WorkflowError) as error:
        return str(error)


def _supervise(command: list[str], environment: dict[str, str]) -> int:
    """Run Snakemake; on a signal let it end its jobs first.

    SIGTERM lets it wait for the jobs that run. A closed terminal (SIGHUP, unless nohup has it ignored) and the death of
    this process are for it what Ctrl-C is: it ends its jobs here, and cancels those on a cluster, which otherwise would
    go on without anyone who knows of them.
    """
    from polydetox.execute import ends_with

    hung_up = False
    interrupted_with_this = ends_with(os.getpid(), signal.SIGINT)

    def hang_up(*_: object) -> None:
        nonlocal hung_up
        hung_up = True
        process.send_signal(signal.SIGINT)

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a script starts the command in the background
        interrupted_with_this()

    process = subprocess.Popen(command, env=environment, preexec_fn=prepare)
    handlers = {signal.SIGTERM: lambda *_: process.terminate(), signal.SIGHUP: hang_up}
    previous = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        status = process.wait()
        if hung_up:
            raise KeyboardInterrupt
        return status
    except KeyboardInterrupt:
        process.wait()  # the terminal has sent it the same signal
        raise
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
