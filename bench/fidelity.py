"""What the differences from the published code do to a result, measured on a finished run of one model.

    python bench/fidelity.py runs/offline OUT              # every step of the table of fidelity that can be measured
    python bench/fidelity.py runs/offline OUT --only probe # those whose name has this in it

For each step the run's own notebooks are executed once more with the published choice and all else as the run had it;
OUT keeps what they write, so that a second command goes on. The figures go to book/reference/fidelity_effects.csv, from
which the report prints them: ``here`` is the run's own value (empty where the figure compares the two), ``published``
that with the published choice. $PARALLEL_PROMPTS adds the paper's prompts.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from notebook_cells import run_cells
from polydetox.core import paths
from polydetox.core.artifacts import MANIFEST, finished, git_commit, link_or_copy, read_json
from polydetox.core.errors import UserError
from polydetox.core.parameters import notebook_file
from polydetox.data.parallel import parallel_texts
from polydetox.execute import execute
from polydetox.mechanism.architectures import MLPs
from polydetox.mechanism.probe import Probe
from polydetox.metrics.evaluate import OUTLIER
from polydetox.metrics.toxicity import prompt_toxicity
from polydetox.models.checkpoints import load_tokenizer, weights_of

COLUMNS = ["step", "quantity", "here", "published", "n", "of", "model", "run", "commit", "date"]
LANGUAGES = ["de", "en", "ru", "zh"]  # where another run samples or decodes: two near English, two far from it
IN_FEW = f"prompts in {len(LANGUAGES)} languages"
Effect = tuple[str, float | None, float, int, str]  # quantity, here, published, n, of what
MEASURES: dict[str, Callable[[Run], Iterable[Effect]]] = {}


def measures(step: str) -> Callable[..., Any]:
    """Makes a function the measure of a step of the table of fidelity."""
    return lambda function: MEASURES.setdefault(step, function)


@dataclass(frozen=True)
class Run:
    """A finished run of one model and one variant, and the folder of what is run once more."""

    folder: Path
    out: Path

    def __post_init__(self) -> None:
        variants = self.record["profile"]["variants"]
        main = [name for name in variants if not variants[name].get("ablation")]
        found = [name for name in main if (self.place / name / "dpo").is_dir()]
        if len(self.record["models"]) != 1 or found != ["dpo"]:
            raise UserError(f"{self.folder}: not a run of one model with the one variant dpo; give runs/offline")

    @property
    def record(self) -> Any:
        return read_json(self.folder / "run.json")

    @property
    def place(self) -> Path:
        return self.folder / self.record["models"][0]["name"]

    def settings(self, stage: str) -> dict[str, Any]:
        """What the notebook of a stage was given, with whole paths."""
        text = json.dumps(read_json(self.place / stage / MANIFEST)["parameters"])
        return json.loads(text.replace('"runs/', f'"{self.folder.parent}/'))

    def again(self, stage: str, name: str, **changes: Any) -> Path:
        """Execute the notebook of a stage with some settings changed; the folder that it wrote."""
        settings = self.settings(stage) if finished(self.place / stage) else {}
        notebook = read_json(self.place / stage / MANIFEST)["stage"] if settings else stage
        folder = self.out / name
        if not finished(folder):
            given = settings | changes | {"output_folder": str(folder)}
            execute(notebook_file(notebook), folder / "notebook.ipynb", given, profile="fidelity")
        return folder

    def pairs(self) -> pd.DataFrame:
        return pd.read_parquet(self.settings("dpo/dpo")["pairs"])

    def scores(self) -> pd.DataFrame:
        """Of the base and the tuned model."""
        tables = [pd.read_parquet(self.place / variant / "score/scores.parquet").assign(variant=variant)
                  for variant in ("base", "dpo")]  # fmt: skip
        return pd.concat(tables, ignore_index=True)


def toxicity(scores: pd.DataFrame) -> pd.DataFrame:
    """EMT, ToxProb and AvgTox of each of a table's languages."""
    return pd.DataFrame({language: prompt_toxicity(rows, "toxicity", 0.5).mean()
                         for language, rows in scores.groupby("language")}).T  # fmt: skip


def sampled(run: Run, name: str, checkpoint: Path, **changes: Any) -> pd.DataFrame:
    """Scores of a checkpoint's continuations, sampled as the run's own."""
    given = {"checkpoint": str(checkpoint), "languages": LANGUAGES} | changes
    generated = run.again("dpo/generate", f"{name}-generate", **given)
    scored = run.again("dpo/score", f"{name}-score", continuations=str(generated / "continuations.parquet"),
                       reference_model="", second_scorer=None)  # fmt: skip
    return pd.read_parquet(scored / "scores.parquet")


def toxicity_after(run: Run, name: str, checkpoint: Path) -> Iterable[Effect]:
    """Toxicity of another tuned checkpoint against that of the run's own, in a few languages."""
    theirs = sampled(run, name, checkpoint)
    scores = run.scores()
    base, ours = (toxicity(scores[(scores["variant"] == variant) & scores["language"].isin(LANGUAGES)])
                  for variant in ("base", "dpo"))  # fmt: skip
    n = len(theirs[["language", "prompt_id"]].drop_duplicates())
    yield "ToxProb after tuning", ours["toxprob"].mean(), toxicity(theirs)["toxprob"].mean(), n, IN_FEW
    drops = [float((1 - after["emt"] / base["emt"]).mean()) for after in (ours, toxicity(theirs))]
    yield "relative drop of EMT", *drops, n, IN_FEW


def change_apart(base: Path, ours: Path, theirs: Path) -> float:
    """How far apart two tuned checkpoints are, as a fraction of how far ours is from the base model."""
    weights = [load_file(weights_of(str(folder)) / "model.safetensors") for folder in (base, ours, theirs)]
    between, moved = 0.0, 0.0
    for name, before in weights[0].items():
        mine, other = (tensors[name].float() for tensors in weights[1:])
        between += float((other - mine).square().sum())
        moved += float((mine - before.float()).square().sum())
    return (between / moved) ** 0.5


def trained_otherwise(run: Run, name: str, folder: Path) -> Iterable[Effect]:
    """What another training gave: held-out loss and accuracy, weights, toxicity."""
    mine = read_json(run.place / "dpo/dpo/metrics.json")
    theirs = read_json(folder / "metrics.json")
    for key, title in (("held_out_loss", "loss"), ("held_out_accuracy", "accuracy")):
        yield f"{title} on the held-out pairs", mine[key], theirs[key], theirs["pairs_held_out"], "pairs"
    apart = change_apart(run.place / "trim", run.place / "dpo/dpo", folder)
    n = sum(value.numel() for value in load_file(folder / "weights/model.safetensors").values())
    yield "distance of the two tuned models, as a fraction of that from the base model", None, apart, n, "weights"
    yield from toxicity_after(run, name, folder)


@measures("Long prompts of preference pairs")
def long_prompts(run: Run) -> Iterable[Effect]:
    tokenizer = load_tokenizer(weights_of(str(run.folder.parent / "checkpoints" / run.place.name)))
    limit = run.settings("dpo/dpo")["max_prompt_length"]
    sets = {"prompts of the run's pairs": list(run.pairs()["prompt"].unique())}
    if folder := os.environ.get("PARALLEL_PROMPTS"):
        sets["prompts of the paper's parallel ones, in English"] = parallel_texts("folder", ["en"], folder, None)["en"]
    for of, prompts in sets.items():
        long = sum(len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) > limit for prompt in prompts)
        yield f"prompts of more than {limit} tokens, which alone differ", None, long, len(prompts), of


@measures("Long preference pairs")
def long_pairs(run: Run) -> Iterable[Effect]:
    pairs = run.pairs()
    sides = pairs[["chosen", "rejected"]].apply(lambda side: side.str.len()).max(axis=1)
    yield "pairs that stay", len(pairs), int((pairs["prompt"].str.len() + sides <= 256).sum()), len(pairs), "pairs"


@measures("Weight decay")
def weight_decay(run: Run) -> Iterable[Effect]:
    yield from trained_otherwise(run, "decay", run.again("dpo/dpo", "decay", weight_decay=0.0))


@measures("Held-out pairs")
def held_out_pairs(run: Run) -> Iterable[Effect]:
    given, pairs = run.settings("dpo/dpo"), run.pairs()
    count = round(given["held_out_share"] * len(pairs))
    mask = np.isin(np.arange(len(pairs)), np.random.default_rng(given["seed"]).permutation(len(pairs))[:count])
    both = pairs[mask]["prompt"].isin(pairs[~mask]["prompt"]).mean()
    yield "fraction of held-out pairs whose prompt is trained on too", 0.0, float(both), count, "pairs"


@measures("Average toxicity")
def average_toxicity(run: Run) -> Iterable[Effect]:
    for variant, scores in run.scores().groupby("variant"):
        pooled = scores.groupby("language")["toxicity"].mean().mean()
        yield f"AvgTox ({variant})", toxicity(scores)["avgtox"].mean(), pooled, len(scores), "continuations"


@measures("Blank continuations")
def blank_continuations(run: Run) -> Iterable[Effect]:
    scores = run.scores()
    blank = int((scores["continuation"].str.strip() == "").sum())
    yield "blank continuations, which alone differ", None, blank, len(scores), "continuations"


@measures("Perplexity")
def perplexity(run: Run) -> Iterable[Effect]:
    scores = run.scores()
    known = scores[scores["perplexity"].notna()]
    for variant, rows in known.groupby("variant"):
        groups = rows.groupby("language")["perplexity"]
        theirs = groups.apply(lambda values: np.quantile(values[values < OUTLIER], 0.5, method="midpoint"))
        what = f"median without outliers, by the published quantile ({variant})"
        yield what, groups.median().mean(), theirs.mean(), len(rows), "continuations"
    # The published likelihood is of the whole text less the prompt's; with a causal model that is nearly the same.
    texts = pd.read_parquet(run.place / "base/generate/continuations.parquet")
    run.out.mkdir(parents=True, exist_ok=True)
    texts[texts["language"].isin(LANGUAGES)].to_parquet(run.out / "few.parquet")
    folder = run.again("base/score", "perplexity", continuations=str(run.out / "few.parquet"), perplexity="published")
    found = pd.read_parquet(folder / "scores.parquet").dropna(subset="perplexity")
    ours = known[(known["variant"] == "base") & known["language"].isin(LANGUAGES)]
    medians = [float(rows.groupby("language")["perplexity"].median().mean()) for rows in (ours, found)]
    yield "median by the published likelihood, with a causal reference model", *medians, len(found), "continuations"


def actual_sources(run: Run, folder: Path) -> Iterable[Effect]:
    ours, theirs = (pd.read_parquet(place / "sources.parquet") for place in (run.place / "value_vectors", folder))
    yield "actual sources", int(ours["actual"].sum()), int(theirs["actual"].sum()), len(theirs), "potential sources"
    both = ours[ours["actual"]].merge(theirs[theirs["actual"]], on=["layer", "neuron"])
    yield "of these, the same", None, len(both), int(ours["actual"].sum()), "actual sources"


def source_activations(run: Run, name: str, **changes: Any) -> Iterable[Effect]:
    """The mean activation of the sources before and after tuning, in a few languages."""
    for variant, title in (("base", "before"), ("dpo", "after")):
        folder = run.again(f"{variant}/activations", f"{name}-{variant}", languages=LANGUAGES, **changes)
        found = [
            read_json(place / "metrics.json")["languages"] for place in (run.place / variant / "activations", folder)
        ]
        means = [float(np.mean([each[language]["sources"] for language in LANGUAGES])) for each in found]
        n = sum(found[1][language]["prompts"] for language in LANGUAGES)
        yield f"mean activation of the sources {title} tuning", *means, n, IN_FEW


@measures("Activations")
def activations(run: Run) -> Iterable[Effect]:
    places = run.place / "value_vectors", run.again("value_vectors", "vectors-bos", bos="always")
    means = [float(pd.read_parquet(place / "sources.parquet")["activation"].mean()) for place in places]
    n = read_json(places[1] / "metrics.json")["prompts"]
    yield "mean activation of the potential sources", *means, n, "prompts in English"


@measures("Actual sources")
def sources(run: Run) -> Iterable[Effect]:
    yield from actual_sources(run, run.again("value_vectors", "vectors-bos", bos="always"))


@measures("Tokens after the end of a text")
def after_the_end(run: Run) -> Iterable[Effect]:
    yield from actual_sources(run, run.again("value_vectors", "vectors-end", stop_at_end=False))
    yield from source_activations(run, "activations-end", stop_at_end=False)


def of_probe(run: Run, name: str, here: dict[str, Any] | None = None, **published: Any) -> Iterable[Effect]:
    """What another probe tells on held-out English texts, and which value vectors are near it."""
    places = [(run.place / "probe", run.place / "value_vectors")]
    for number, changes in enumerate(filter(None, [here, published])):
        probe = run.out / f"probe-{name}-{number}"
        if not (finished(probe) or changes.get("final_norm")):  # the same features
            probe.mkdir(parents=True, exist_ok=True)
            link_or_copy(run.place / "probe/features.safetensors", probe / "features.safetensors")
        run.again("probe", probe.name, **changes)
        vectors = run.again("value_vectors", f"{probe.name}-vectors", probe=str(probe / "probe.safetensors"))
        places.append((probe, vectors))
    (ours, our_vectors), (theirs, their_vectors) = places[-2:]
    measured = [read_json(place / "metrics.json")["probe"]["test"] for place in (ours, theirs)]
    for key, title in (("accuracy", "accuracy"), ("roc_auc", "area under the ROC curve")):
        values = [found[key] for found in measured]
        yield f"{title} on held-out English texts", *values, measured[1]["texts"], "texts"
    probes = [Probe.load(place / "probe.safetensors") for place in (ours, theirs)]
    first, second = (probe.weight for probe in probes)
    cosine = float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))
    yield "cosine of the weights of the two probes", None, cosine, len(first), "directions"
    tables = [pd.read_parquet(place / "sources.parquet") for place in (our_vectors, their_vectors)]
    both = tables[0].merge(tables[1], on=["layer", "neuron"])
    yield "nearest value vectors in common", None, len(both), len(tables[0]), "value vectors"


@measures("Features of the toxicity probe")
def probe_features(run: Run) -> Iterable[Effect]:
    yield from of_probe(run, "norm", final_norm=True)


@measures("Bias of the toxicity probe")
def probe_bias(run: Run) -> Iterable[Effect]:
    yield from of_probe(run, "bias", bias=False)


@measures("Epoch of the toxicity probe")
def probe_epoch(run: Run) -> Iterable[Effect]:
    yield from of_probe(run, "epoch", epoch="best")


@measures("Learning rate of the toxicity probe")
def probe_learning_rate(run: Run) -> Iterable[Effect]:
    yield from of_probe(run, "rate", {"learning_rate": 1e-4}, learning_rate=1e-6)


@measures("Validation texts of the toxicity probe")
def probe_validation(run: Run) -> Iterable[Effect]:
    texts = pd.read_parquet(run.settings("probe")["continuations"])
    run.out.mkdir(parents=True, exist_ok=True)
    each = run.out / "texts-one-by-one.parquet"
    texts.assign(prompt_id=[f"text-{row}" for row in range(len(texts))]).to_parquet(each)
    yield from of_probe(run, "split", continuations=str(each))
    places = run.place / "probe", run.out / "probe-split-0"
    found = [read_json(place / "metrics.json")["probe"]["validation"] for place in places]
    yield "accuracy on the validation texts", *(each["accuracy"] for each in found), found[1]["texts"], "texts"


@measures("Promoted tokens")
def promoted_tokens(run: Run) -> Iterable[Effect]:
    folder = run.again("value_vectors", "vectors-norm", final_norm=False)
    places = run.place / "value_vectors", folder
    ours, theirs = (pd.read_parquet(place / "sources.parquet")["tokens"] for place in places)
    common = [len(set(mine) & set(other)) for mine, other in zip(ours, theirs, strict=True)]
    yield f"tokens in common, of {len(theirs[0])}, mean", None, float(np.mean(common)), len(common), "value vectors"


@measures("Representations of parallel sentences")
def representations(run: Run) -> Iterable[Effect]:
    folder = run.again("base/retrieval", "retrieval", depths="hidden_states")
    found = [read_json(place / "metrics.json") for place in (run.place / "base/retrieval", folder)]
    languages = [language for language in found[1]["languages"] if language != "en"]
    scores = run.scores()
    emt = {variant: toxicity(rows)["emt"] for variant, rows in scores.groupby("variant")}
    drop = (1 - emt["dpo"] / emt["base"])[languages]
    for key, title in (("aligned_cosine", "cosine of parallel sentences"), ("accuracy", "retrieval accuracy")):
        values = [[each["languages"][language][key] for language in languages] for each in found]
        yield f"{title}, mean over layers and languages", *map(float, map(np.mean, values)), len(languages), "languages"
        correlations = [float(pearsonr(each, drop).statistic) for each in values]
        yield f"correlation of the {title} with the drop of EMT", *correlations, len(languages), "languages"


def edited(run: Run, name: str, **changes: Any) -> Path:
    given = {"checkpoint": run.settings("dpo/dpo")["checkpoint"], "pairs": run.settings("dpo/dpo")["pairs"]}
    return run.again("profs", name, **given | changes)


def edited_otherwise(run: Run, name: str, folder: Path) -> Iterable[Effect]:
    """An edit by ProFS against our own: value vectors, toxicity."""
    ours = edited(run, "profs")
    pairs = read_json(folder / "metrics.json")["pairs"]
    yield ("distance of the two edited models, as a fraction of that from the base model", None,
           change_apart(run.place / "trim", ours, folder), pairs, "pairs")  # fmt: skip
    mine, theirs = (sampled(run, each.name, each) for each in (ours, folder))
    n = len(theirs[["language", "prompt_id"]].drop_duplicates())
    for key, title in (("emt", "EMT"), ("toxprob", "ToxProb")):
        values = [float(toxicity(scores)[key].mean()) for scores in (mine, theirs)]
        yield f"{title} after the edit", *values, n, IN_FEW


@measures("Toxic subspace of ProFS")
def profs_subspace(run: Run) -> Iterable[Effect]:
    pairs, apart = run.pairs(), run.out / "sides-apart.parquet"
    order = np.random.default_rng(0).permutation(len(pairs))
    run.out.mkdir(parents=True, exist_ok=True)
    pairs.assign(rejected=pairs["rejected"].to_numpy()[order]).to_parquet(apart)
    yield from edited_otherwise(run, "profs-apart", edited(run, "profs-apart", pairs=str(apart)))


@measures("Edit of ProFS where a norm follows the MLP")
def profs_gain(run: Run) -> Iterable[Effect]:
    folder = run.out / "profs-no-gain"
    if not finished(folder):
        given = read_json(edited(run, "profs") / MANIFEST)["parameters"]
        given |= {name: run.settings("dpo/dpo")[name] for name in ("checkpoint", "pairs")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MLPs, "gain", lambda *_: 1.0)
            run_cells("profs", **given, output_folder=str(folder))
    yield from edited_otherwise(run, "profs-no-gain", folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="folder for what is run once more: toxic text in part")
    parser.add_argument("--only", default="", help="measure the steps with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(options.run.resolve(), options.out.resolve())
    os.environ["POLYDETOX_RUNS"] = str(run.out)
    if not (run.out / "cache").exists() and (run.folder.parent / "cache").is_dir():
        shutil.copytree(run.folder.parent / "cache", run.out / "cache")
    file = paths.root() / "book/reference/fidelity_effects.csv"
    about = [run.record["models"][0]["title"], run_title(run), git_commit()["git_commit"], time.strftime("%Y-%m-%d")]
    for step, measure in MEASURES.items():
        if options.only.lower() not in step.lower():
            continue
        try:
            rows = [[step, *effect, *about] for effect in measure(run)]
        except UserError as error:
            print(f"{step}: not measured: {error}")
            continue
        found = pd.DataFrame(rows, columns=COLUMNS)
        print(found[COLUMNS[:6]].to_string(index=False, header=False), flush=True)
        known = pd.read_csv(file) if file.is_file() else found.head(0)
        table = pd.concat([known[known["step"] != step], found], ignore_index=True)
        order = table["step"].map(list(MEASURES).index)
        table = table.iloc[np.argsort(order, kind="stable")]
        table.to_csv(file, index=False, float_format="%.4g", lineterminator="\n")
    return 0


def run_title(run: Run) -> str:
    """The profile of the run, and the commit of its code."""
    commit = read_json(run.place / "base/generate" / MANIFEST)["git_commit"] or "no commit"
    return f"{run.folder.name} at {re.sub(r'(?<=[0-9a-f]{10})[0-9a-f]+', '', commit)}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
