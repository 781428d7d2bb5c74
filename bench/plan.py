"""What a run of a profile would take: GPU hours, disk and cost of each stage, on some numbers of GPUs.

`python bench/plan.py [PROFILE]` (default `paper`). The jobs and their order are Snakemake's own, what each costs comes
from the rates in `params/rates.yaml`, and the time on a number of GPUs from a simulation of the schedule. `h on N` is
how long a stage has a job running; the rows of the stages overlap. `--sources` prints where each rate comes from.
"""

from __future__ import annotations

import argparse
import os
import sys

from polydetox import paths
from polydetox.errors import UserError
from polydetox.planning import Rates, full_table, sources


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", default="paper", help="a file of params/profiles/ (paper)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], help="numbers of GPUs (1 8 64)")
    parser.add_argument("--cores", type=int, default=8, help="CPU cores beside each GPU (8)")
    parser.add_argument("--sources", action="store_true", help="print the rates with their sources as well")
    options = parser.parse_args()
    os.chdir(paths.root())
    rates = Rates.read()
    print(full_table(options.profile, options.gpus, options.cores, rates))
    if options.sources:
        print("", "Rates:", sources(rates), sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
