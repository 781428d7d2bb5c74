# The workflow: one rule a stage, each running its notebook with papermill.
#
#   polydetox run --profile offline        the same with checks before it starts (what `make paper` does)
#   snakemake --config profile=offline -n  the plan
#
# A chapter of the report is a file of rules/. Beside each rule its stage is registered: its folder, its jobs, what its
# notebook is given, and how the report names it. Every stage's folder ends with manifest.json, which marks its success;
# the next stages wait for it.

import json
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.core.parameters import checked, notebook_file
from polydetox.core.paths import relative as local
from polydetox.workflow import FIRST, Run, each, local_files

try:
    run = Run(str(config.get("profile", "offline")))  # Snakemake makes a number of a name that looks like one
    run.prompt_sets  # reads optional prompts, which may be damaged
except UserError as error:
    raise WorkflowError(str(error))

profile = run.profile.name
RUN = run.folder

# One notebook; what it prints goes to the job's log. Each name is quoted for the shell (`:q`), and none can be taken
# for an option. This Python, since PATH cannot hold every folder's name.
EXECUTE = (
    "{sys.executable:q} -m polydetox execute --profile={profile:q} --threads={threads}"
    " --parameters={params.parameters:q} -- {input.notebook:q} {output.notebook:q} > {log:q} 2>&1"
)


def any_of(*names):
    """A constraint of a wildcard: one of some names, or none at all where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def gpu(w):
    return run.model_file(w.model).resources.gpu


def mem_mb(w):
    return run.model_file(w.model).resources.mem_mb


def is_early(stage, w):
    """Whether the site on the first languages waits for a job."""
    return run.jobs[stage, *sorted(w.items())].folder in EARLY


def sooner(stage, otherwise=0, early=9):
    """The priority of a stage's jobs: what the site on the first languages waits for comes before everything else."""
    return lambda w: early if is_early(stage, w) else otherwise


wildcard_constraints:
    model=any_of(*run.models),
    variant=any_of(*{variant for model in run.models for variant in run.variants(model)}),
    lang=any_of(*dict.fromkeys(["en", *run.profile.languages])),
    part=any_of(FIRST, ""),  # of the report: the site on the first languages, or the whole


rule site:
    input:
        lambda w: SITES,  # of rules/report.smk


include: "rules/preference.smk"
include: "rules/evaluation.smk"
include: "rules/mechanism.smk"
include: "rules/transfer.smk"
include: "rules/benchmarks.smk"
include: "rules/attribute_control.smk"
include: "rules/synthetic.smk"
include: "rules/report.smk"
