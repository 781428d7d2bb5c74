"""Run a dress rehearsal by hand: ``python -m tests.rehearsal --help``."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from . import CHECKOUT, PROFILES, SIDE_BY_SIDE, has_gpu, prepare


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rehearsal",
        description="the papers' profiles with random models and little data, to the rendered site; what is not "
        "listed here is passed to `polydetox run`",
    )
    parser.add_argument("profiles", nargs="*", default=PROFILES, choices=[*PROFILES, []], metavar="profile",
                        help=f"of {', '.join(PROFILES)} (default: both)")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "runs/rehearsal", help="where everything goes")
    parser.add_argument("--models", nargs="+", help="fewer models")
    parser.add_argument("--languages", nargs="+", help="fewer languages")
    options, rest = parser.parse_known_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the data are made with helpers of the tests
    fewer = {name: values for name in ("models", "languages") if (values := getattr(options, name))}
    gpu = has_gpu()
    together = [] if gpu else SIDE_BY_SIDE
    environment = prepare(
        options.folder.resolve(), options.profiles, gpu, **{profile: fewer for profile in options.profiles}
    )
    statuses = []
    for profile in options.profiles:
        print(f"rehearsal of {profile} in {options.folder}", flush=True)
        command = [sys.executable, "-m", "polydetox", "run", "--profile", profile, *together, *rest]
        statuses.append(subprocess.run(command, cwd=environment["POLYDETOX_ROOT"], env=environment).returncode)
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
