"""``python -m polydetox.kernel launch|serve|install|uninstall|stop|status``; see the package's docstring."""

from __future__ import annotations

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # The folder that ``-m`` puts first: a notebook's folder must not shadow the standard library.
    del sys.path[0]

from typing import NoReturn


def _launch(arguments: list[str]) -> NoReturn:
    if not sys.platform.startswith("linux"):
        # Elsewhere a fork is unsafe or unknown. In this process, since Windows cannot replace one by another.
        import runpy

        print(f"polydetox kernel: not on {sys.platform}; using the plain kernel", file=sys.stderr, flush=True)
        sys.argv = ["ipykernel_launcher", *arguments]
        runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
        sys.exit()
    from polydetox.kernel import client

    client.launch(arguments)


def main(arguments: list[str]) -> int:
    """Run one of the subcommands; returns the exit status."""
    if arguments[:1] == ["launch"]:
        # Every notebook comes this way: no parser, whose import takes longer than all the rest.
        _launch(arguments[1:])

    import argparse

    from polydetox.errors import UserError

    parser = argparse.ArgumentParser(prog="python -m polydetox.kernel", description="The forking Jupyter kernel.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("launch", help="be a kernel (what the kernelspec runs): launch -f CONNECTION_FILE")
    serve = commands.add_parser("serve", help="be the server, in the foreground; clients start it by themselves")
    serve.add_argument("--socket", help="where to listen (default: where this environment's clients look)")
    serve.add_argument("--ready", type=int, help=argparse.SUPPRESS)
    serve.add_argument("--lock", type=int, help=argparse.SUPPRESS)
    for name, text in (("install", "write the kernelspec"), ("uninstall", "remove the kernelspec")):
        commands.add_parser(name, help=text).add_argument("--prefix", default=sys.prefix)
    stop = commands.add_parser("stop", help="stop the servers of this installation")
    stop.add_argument("--now", action="store_true", help="end their kernels too")
    stop.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for their end (10)")
    commands.add_parser("status", help="list the servers of this installation")
    given = parser.parse_args(arguments)

    if given.command in ("install", "uninstall"):
        from polydetox.kernel import spec

        try:
            print(spec.install(given.prefix) if given.command == "install" else spec.uninstall(given.prefix))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        return 0
    if not sys.platform.startswith("linux"):
        print(f"there are no servers on {sys.platform}: kernels are plain ones", file=sys.stderr)
        return 0
    if given.command == "serve":
        from polydetox.kernel import protocol, server

        server.serve(given.socket or protocol.address(), given.ready, given.lock)
    from polydetox.kernel import client

    if given.command == "stop":
        return 0 if client.stop(given.timeout, now=given.now) else 1
    for answer in client.status():
        state = f"refuses: {answer['refusal']}" if answer["refusal"] else f"{len(answer['kernels'])} kernels"
        print(f"process {answer['process']}: {state}, {answer['age']:.0f} s old, log {answer['log']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
