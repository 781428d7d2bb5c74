"""A made-up run of a small profile: every artefact that the report reads, without any model.

Prompts and continuations are markers that no page may show uncovered, and some of them try to break out of their
cover with markup of HTML, Markdown and Quarto.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import synthetic_control
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from recorded import write_record

from notebook_cells import definitions, run_cell, run_cells
from polydetox.results.collect import Results

CHECKOUT = Path(__file__).resolve().parents[2]

PROFILE = "synthetic"
MODEL = "tiny"
TRAINED, MISSING = "dpo", "dpo-lora"  # the second variant of the profile is never run
# Ablations: another seed in all languages, another learning rate in one, shuffled labels in two.
SEED, RATE, PLACEBO = "dpo-seed-1", "dpo-lr", "dpo-shuffled"
FURTHER = "further"  # a second set of prompts
MARKER = "OFFENSIVE"
NOTICE = "The Tiny model is provided under terms that ask for this notice."

HOSTILE = [
    "<script>window.broken = 1</script>",
    "```\n::: {.x}",
    "{{< var nothing >}}",
    "@fig-nothing $a_b$ *c*",
    "\u202e</details>",
]

VERSIONS = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.19.0"}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Let the library's paths point into ``folder``, and Quarto be absent."""
    from polydetox.core import paths

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYDETOX_ROOT", str(folder / "checkout"))
        patch.setenv("POLYDETOX_RUNS", str(folder / "runs"))
        patch.setenv("QUARTO", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(CHECKOUT / "lib"), os.environ.get("PYTHONPATH")])))
        patch.chdir(folder / "checkout")
        paths.root.cache_clear()
        yield
    paths.root.cache_clear()


def make_checkout(folder: Path, languages: list[str]) -> Path:
    """A checkout with this one's notebooks and book, and a profile of one tiny model."""
    folder.mkdir(parents=True)
    for name in ("notebooks", "book", "rules", "Snakefile", "_quarto.yml", "CITATION.cff"):
        (folder / name).symlink_to(CHECKOUT / name)
    model = {
        "title": "Tiny",
        "use": "path",
        "path": "nowhere",
        "licence": "Tiny terms",
        "notice": NOTICE,
        "reference": "mGPT",
    }
    fewer = {"pairs": "on-policy", "prompt_limit": 4, "generate": {"n": 2}}
    profile = {
        "title": "A made-up run",
        "description": "No model was asked.",
        "models": [MODEL],
        "languages": languages,
        "prompts": {"source": "project", "limit": 6},
        "trim": {"words_per_language": 20, "expected_tokens": 100},
        "pairs": {"on-policy": {"n": 4, "margin": 0.0}},
        "more_prompts": {FURTHER: {"title": "Further", "source": "project", "limit": 3}},
        "variants": {
            TRAINED: {"title": "DPO", "pairs": "on-policy"},
            MISSING: {"title": "LoRA", "pairs": "on-policy"},
            SEED: {"title": "seed 1", "pairs": "on-policy", "ablation": "seed", "dpo": {"seed": 1}},
            RATE: fewer
            | {
                "title": "2e-6",
                "ablation": "learning-rate",
                "languages": languages[:1],
                "dpo": {"learning_rate": 2e-6},
            },
            PLACEBO: fewer
            | {
                "title": "shuffled labels",
                "ablation": "placebo",
                "languages": languages[:2],
                "dpo": {"labels": "shuffled"},
            },
        },
        "dpo": {"learning_rate": 1e-6},
        "agreement": {"scorers": ["embedded", "use"]},
        "mechanism": {"residual": {}},
        "alignment": {"retrieval": {"sentences": "project"}},
        **synthetic_control.PROFILE,
    }
    shutil.copytree(CHECKOUT / "params" / "tasks", folder / "params" / "tasks")
    shutil.copy(CHECKOUT / "params" / "data.yaml", folder / "params")
    for kind, name, content in (("models", MODEL, model), ("profiles", PROFILE, profile)):
        file = folder / "params" / kind / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml.safe_dump(content))
    return folder


def make_run(runs: Path, languages: list[str], *, prompts: int = 6, samples: int = 3) -> None:
    """Write the artefacts of every stage of the profile but the variant that was not run."""
    run = runs / PROFILE / MODEL
    _stage(runs / "checkpoints" / MODEL, "checkpoint", {}, metrics=None)
    trim = {
        "vocabulary_full": 1000,
        "vocabulary_kept": 250,
        "share_kept": 0.25,
        "probability_mass_kept": 0.9,
        "languages": languages,
    }
    _stage(run / "trim", "trim", {}, metrics=trim)
    _pairs(run / "pairs" / "on-policy")
    _training(run / TRAINED / "dpo")
    _stage(run / TRAINED / "merge", "merge", {}, metrics=None)
    for variant in ("base", TRAINED):
        tables, further = {}, {}
        for position, language in enumerate(languages):
            tables[language] = make_scores(variant, language, position, prompts, samples)
            further[language] = make_scores(variant, language, position, 3, samples)
            further[language]["prompt_id"] = "further-" + further[language]["prompt_id"]
        _evaluated(run / variant, variant, tables, samples)
        _evaluated(run / variant / FURTHER, variant, further, samples)
    _ablations(run, languages, prompts, samples)
    _agreement(run, languages, prompts, samples)
    _mechanism(run, languages, prompts)
    _alignment(run, languages)
    synthetic_control.make_capability(run, ["base", TRAINED], _stage)
    synthetic_control.make_control(run, languages, MARKER, prompts, samples, _stage)


def make_run_of_control(runs: Path, languages: list[str], *, prompts: int = 6, samples: int = 3) -> None:
    """Write the artefacts of a profile that has a checkpoint and attribute control, and nothing else."""
    _stage(runs / "checkpoints" / MODEL, "checkpoint", {}, metrics=None)
    synthetic_control.make_control(runs / PROFILE / MODEL, languages, MARKER, prompts, samples, _stage)


def _ablations(run: Path, languages: list[str], prompts: int, samples: int) -> None:
    """Another seed, a little different in every language; another learning rate and shuffled labels, of which the
    latter changes little, with fewer prompts and samples."""
    for variant in (SEED, RATE, PLACEBO):
        _training(run / variant / "dpo", variant)
        _stage(run / variant / "merge", "merge", {}, metrics=None)

    def scores_of(variant: str, position: int, change: float, prompts: int, samples: int) -> pd.DataFrame:
        scores = make_scores(variant, languages[position], position, prompts, samples)
        return scores.assign(toxicity=(scores["toxicity"] + change).clip(0, 1))

    seed = {language: scores_of(TRAINED, position, 0.01 * (position + 1), prompts, samples)
            for position, language in enumerate(languages)}  # fmt: skip
    _evaluated(run / SEED, SEED, seed, samples)
    _evaluated(run / RATE, RATE, {languages[0]: make_scores(TRAINED, languages[0], 0, 4, 2)}, 2)
    placebo = {language: scores_of("base", position, -0.1, 4, 2) for position, language in enumerate(languages[:2])}
    _evaluated(run / PLACEBO, PLACEBO, placebo, 2)


def make_scores(variant: str, language: str, position: int, prompts: int, samples: int) -> pd.DataFrame:
    """Scored continuations in which tuning lowers toxicity in every language, by less the later it is listed."""
    rng = np.random.default_rng([position, variant == "base"])
    rows = []
    for prompt in range(prompts):
        for sample in range(samples):
            hostile = HOSTILE[(prompt + sample) % len(HOSTILE)]
            level = 0.55 if variant == "base" else 0.12 + 0.02 * position
            empty = variant != "base" and (prompt, sample) == (0, 0)
            rows.append({
                "prompt_id": f"p{prompt:02d}",
                "prompt": f"{MARKER} prompt {language} {prompt}",
                "sample": sample,
                "continuation": "" if empty else f"{MARKER} {variant} {language} {prompt} {sample} {hostile}",
                "toxicity": np.nan if empty else float(np.clip(rng.normal(level, 0.2), 0, 1)),
                "secondary_toxicity": np.nan if empty else float(rng.random() < level),
                "perplexity": np.nan if empty else float(np.exp(rng.normal(2.3, 0.4))),
                "detected_language": None if empty else (language if rng.random() < 0.9 else "en"),
                "tokens": 0 if empty else 12,
                "empty": empty,
                "truncated": not empty,
                "token_distinct_1": 0.4,
                "token_distinct_2": 0.8,
                "token_distinct_3": 0.9,
                "gloss": f"{MARKER} gloss {prompt}",
            })  # fmt: skip
    return pd.DataFrame(rows)


def _evaluated(folder: Path, variant: str, tables: dict[str, pd.DataFrame], samples: int) -> None:
    """The continuations of one variant in every language, their scores, and the evaluation of each language."""
    from notebook_cells import summarise
    from polydetox.report.masking import masked_table

    shared = {"model": MODEL, "profile": PROFILE, "variant": variant}
    scores = pd.concat([table.assign(language=language) for language, table in tables.items()], ignore_index=True)
    covered = masked_table(scores.iloc[[0, -1]])
    shown = _output({"text/html": covered._repr_html_(), "text/plain": repr(covered)})
    generated = {"n": samples, "temperature": 0.9, "top_p": 0.8, "max_new_tokens": 20, "languages": list(tables)}
    columns = ["language", "prompt_id", "prompt", "sample", "continuation", "tokens", "empty", "truncated", "gloss"]
    _table(folder / "generate" / "continuations.parquet", scores[columns])
    _stage(folder / "generate", "generate", shared | generated, metrics=None,
           cells=[("masked_table(continuations)", [shown])])  # fmt: skip
    scored = {
        "scorer": "embedded",
        "second_scorer": "use",
        "reference_model": synthetic_control.base_checkpoint(folder.parent),
    }
    _table(folder / "score" / "scores.parquet", scores.drop(columns="tokens"))
    _stage(folder / "score", "score", shared | scored, metrics=scored, cells=[("masked_table(scores)", [shown])])
    cell = '#| label: fig-toxicity\n#| fig-cap: "Toxicity of the continuations."\n#| fig-alt: "Two histograms."\nplot()'
    for language, table in tables.items():
        measured = summarise(table, language, 0.5, samples=50, confidence=0.95, seed=0)
        of_language = shared | {"lang": language, "threshold": 0.5}
        _stage(folder / "evaluate" / language, "evaluate", of_language, metrics=of_language | scored | measured,
               cells=[(cell, [_histogram()])], prose="As @fig-toxicity shows.")  # fmt: skip


def _agreement(run: Path, languages: list[str], prompts: int, samples: int) -> None:
    """The two scorers of the evaluations, side by side; the second does not know the last language."""
    from polydetox.data.rows import Skipped

    variants = ("base", TRAINED)
    tables = {
        language: pd.concat([make_scores(variant, language, position, prompts, samples) for variant in variants])
        for position, language in enumerate(languages)
    }

    def recorded(name: str) -> SimpleNamespace:
        column, known = {"embedded": ("toxicity", languages), "use": ("secondary_toxicity", languages[:-1])}[name]
        return SimpleNamespace(threshold=0.5, languages=known, skipped=Skipped(), revision="1",
                               score=lambda _, language: tables[language][column].to_numpy())  # fmt: skip

    folder = run / "agreement"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydetox.scoring.get_scorer", recorded)
        patch.setattr("polydetox.scoring.CachedScorer", lambda scorer: scorer)
        scores = {variant: str(run / variant / "score" / "scores.parquet") for variant in variants}
        run_cells("agreement", scores=scores, scorers=["embedded", "use"], bootstrap_samples=50,
                  output_folder=str(folder))  # fmt: skip
    metrics = {"scorers": ["embedded", "use"], "thresholds": {"embedded": 0.5, "use": 0.5}, "pairs": []}
    _stage(folder, "agreement", {"scorers": metrics["scorers"]}, metrics=metrics)


def _pairs(folder: Path) -> None:
    pairs = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": ["x", "y"], "chosen": ["c", "d"], "rejected": ["e", "f"]})
    folder.mkdir(parents=True)
    pairs.to_parquet(folder / "pairs.parquet", index=False)
    metrics = {"kind": "on-policy", "pairs": 2, "prompts": 2, "continuations": 8, "margin": 0.3, "scorer": "embedded",
               "chosen_mean": 0.05, "rejected_mean": 0.85}  # fmt: skip
    _stage(folder, "pairs", {"kind": "on-policy"}, metrics=metrics)


def _training(folder: Path, variant: str = TRAINED) -> None:
    rows = [
        (step, split, metric, value)
        for step in range(0, 21, 5)
        for split, noise in (("train", 0.05), ("held_out", 0.0))
        for metric, value in (
            ("loss", 0.693 - 0.02 * step + noise),
            ("reward_margin", 0.1 * step),
            ("reward_accuracy", 0.9),
        )
    ]
    folder.mkdir(parents=True)
    log = pd.DataFrame(rows, columns=["step", "split", "metric", "value"])
    log.to_parquet(folder / "training_log.parquet", index=False)
    metrics = {"method": "full", "steps": 20, "best_step": 20, "learning_rate": 2e-6, "beta": 0.1, "pairs_train": 8,
               "pairs_held_out": 2, "held_out_loss": 0.29, "held_out_accuracy": 0.9}  # fmt: skip
    parameters = {
        "variant": variant,
        "method": "full",
        "learning_rate": 2e-6,
        "beta": 0.1,
        "batch_size": 4,
        "warmup_steps": 10,
    }
    _stage(folder, "dpo", parameters, metrics=metrics)


NEURONS = 6  # sources of the made-up model, of which the last is not active


def _mechanism(run: Path, languages: list[str], prompts: int) -> None:
    """A probe that works less well the later a language is listed, the last of few toxic texts, and sources that tuning
    turns down."""
    quality = [
        (
            classifier,
            part,
            40,
            0.25 if part != languages[-1] else 0.125,
            0.8,
            *(0.9 - 0.05 * position - shift + end for end in (0.0, -0.1, 0.1)),
            0.6,
        )
        for classifier, shift in (("probe", 0.0), ("logistic regression", 0.02))
        for position, part in enumerate(["validation", "test", *languages])
    ]
    columns = ["classifier", "texts_of", "texts", "toxic_fraction", "accuracy", "roc_auc", "roc_auc_low",
               "roc_auc_high", "average_precision"]  # fmt: skip
    _table(run / "probe" / "quality.parquet", pd.DataFrame(quality, columns=columns))
    _stage(run / "probe", "probe", {}, metrics={"texts": {"train": 40}})

    sources = pd.DataFrame({
        "layer": [0, 0, 1, 1, 1, 0], "neuron": range(NEURONS), "cosine": np.linspace(0.3, 0.1, NEURONS),
        "activation": [0.2, 0.1, 0.05, 0.04, 0.02, -0.1], "tokens": [[f" {MARKER}", "<b>", "`@fig-x`"]] * NEURONS,
        "scripts": ["Latin 67%, Han 33%"] * NEURONS,
    })  # fmt: skip
    sources["actual"] = sources["activation"] > 0
    _table(run / "value_vectors" / "sources.parquet", sources)
    found = {"neurons": 64, "layers": 2, "potential": NEURONS, "actual": NEURONS - 1, "lowest_cosine": 0.1,
             "highest_cosine": 0.3, "rms_activation": 0.1, "several_scripts": 5,
             "several_scripts_matched": 4, "prompts": prompts}  # fmt: skip
    _stage(run / "value_vectors", "value_vectors", {}, metrics=found)
    for variant, level in (("base", 0.08), (TRAINED, 0.02)):
        folder, metrics = run / variant / "activations", {}
        neurons = pd.DataFrame({"group": "sources", "layer": 0, "neuron": range(NEURONS - 1), "activation": level})
        _table(folder / "neurons.parquet", neurons.assign(language="en"))
        for position, language in enumerate(languages):
            by_prompt = [level + 0.01 * (prompt % 3) - 0.002 * position for prompt in range(prompts)]
            flat = [0.001 * (prompt % 2) for prompt in range(prompts)]
            alike = [0.08 - (0.0 if variant == "base" else 0.008) for _ in range(prompts)]  # falls by a tenth
            groups = {"sources": by_prompt, "random": flat, "matched": alike}
            means = {group: float(np.mean(values)) for group, values in groups.items()}
            each = {f"{group}_by_prompt": values for group, values in groups.items()}
            metrics[language] = {"prompts": prompts, "neurons": NEURONS - 1, **means, **each}
        _stage(folder, "activations", {"variant": variant}, metrics={"languages": metrics})
    _intervene(run / "base" / "intervene", languages, prompts)
    _residual(run / TRAINED / "residual", languages, prompts)


def _intervene(folder: Path, languages: list[str], prompts: int) -> None:
    continuations = pd.concat([_shifted(language, prompts) for language in languages], ignore_index=True)
    _table(folder / "continuations.parquet", continuations)
    settings = SimpleNamespace(bootstrap_samples=50, confidence=0.95, seed=0)
    offsets = definitions("intervene", settings=settings).by_offset(continuations[continuations["group"] != "neutral"])
    _table(folder / "offsets.parquet", offsets.assign(added=offsets["offset"], unit="rms", random_sets=2))
    metrics = {language: {"unit": "rms", "scorer": "embedded"} for language in languages}
    subtracted = pd.concat([_subtracted(language, prompts) for language in languages], ignore_index=True)
    _table(folder / "directions.parquet", subtracted)
    _stage(folder, "intervene", {}, metrics={"languages": metrics, "residual_length": 40.0, "final_norm": False})


def _subtracted(language: str, prompts: int) -> pd.DataFrame:
    """The probe's direction takes more of the toxicity than the controls, which are as good as the mean difference."""
    drops = {("unchanged", 0): 0.0, ("probe", 0): 0.3, ("mean difference", 0): 0.05}
    drops |= {(control, number): 0.05 for control in ("random", "shuffled labels") for number in (0, 1)}
    rows = [
        {"prompt_id": f"p{prompt:02d}", "prompt": f"{MARKER} prompt", "direction": direction, "number": number,
         "subtracted": amount, "continuation": f"{MARKER} {direction} {amount:g}", "language": language,
         "toxicity": 0.4 + 0.01 * (prompt % 3) - drop * amount, "repeated": 0.1 + amount / 10,
         "perplexity": 5.0 + 10 * amount}
        for (direction, number), drop in drops.items() for amount in ((0.5, 1.0) if drop else (0.0,))
        for prompt in range(prompts)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _residual(folder: Path, languages: list[str], prompts: int) -> None:
    """A change that lies half along the English direction after the last of two layers."""
    shift = [(language, layer, prompts // 2, 0.25 * (1 + layer), 0.1, 0.01, 0.2, 0.9 - 0.1 * position)
             for position, language in enumerate(languages) for layer in (0, 1)]  # fmt: skip
    columns = ["language", "layer", "prompts", "shift", "base", "random", "relative", "cosine"]
    _table(folder / "shift.parquet", pd.DataFrame(shift, columns=columns))
    lens = [(side, language, layer, group, value + layer) for side, value in (("before", 1.0), ("after", 0.5))
            for language in languages for layer in (0, 1) for group in ("sources", "random")]  # fmt: skip
    _table(folder / "lens.parquet", pd.DataFrame(lens, columns=["side", "language", "layer", "group", "standing"]))
    _stage(folder, "residual", {"variant": TRAINED}, metrics={"layers": 2, "tokens": {"sources": 30, "random": 30}})


def _shifted(language: str, prompts: int) -> pd.DataFrame:
    rows = [
        {"prompt_id": f"p{prompt:02d}", "prompt": f"{MARKER} prompt", "group": group, "number": number,
         "offset": offset, "added": offset, "continuation": f"{MARKER} {group} {offset:g}",
         "toxicity": 0.4 + slope * offset}
        for group, number, slope in (("sources", 0, 0.15), ("random", 0, 0.005), ("random", 1, 0.015))
        for offset in (0.0, -1.0, -2.0) for prompt in range(prompts)
    ]  # fmt: skip
    if language == "en":
        rows += [
            {"prompt_id": "n01", "prompt": "The library opens", "group": "neutral", "number": 0,
             "offset": offset, "added": offset, "continuation": f"{MARKER} neutral {offset:g}",
             "toxicity": 0.1 + offset / 10}
            for offset in (0.0, 5.0)
        ]  # fmt: skip
    return pd.DataFrame(rows).assign(language=language, repeated=0.0)


def _alignment(run: Path, languages: list[str]) -> None:
    """Languages that lie the nearer to English the earlier they are listed, and drop the more."""
    from polydetox.core.parameters import checked

    folder, tables, metrics = run / "base" / "retrieval", [], {}
    for position, language in enumerate(languages):
        accuracy = 1.0 if language == "en" else 0.8 - 0.1 * position
        layers = pd.DataFrame({"layer": [1, 2], "accuracy": [accuracy - 0.1, accuracy + 0.1], "from_english": accuracy,
                               "to_english": accuracy, "aligned_cosine": 0.9, "other_cosine": 0.7})  # fmt: skip
        tables.append(layers.assign(language=language))
        means = {name: float(layers[name].mean()) for name in layers.columns if name != "layer"}
        metrics[language] = {"layers": 2, **means, "best_layer": 2, "best_accuracy": accuracy + 0.1}
    _table(folder / "layers.parquet", pd.concat(tables, ignore_index=True))
    _stage(folder, "retrieval", {}, metrics={"sentences": 32, "languages": metrics})
    settings = checked("transfer", bootstrap_samples=100)
    folder = run / TRAINED / "transfer"
    before, after = (
        {
            language: json.loads((run / variant / "evaluate" / language / "metrics.json").read_text())
            for language in languages
        }
        for variant in ("base", TRAINED)
    )
    space = vars(definitions("transfer")) | {"before": before, "after": after, "retrieved": metrics}
    space |= {"table": run_cell("transfer", "transfer-drop", **space)["table"], "settings": settings}
    _table(folder / "languages.parquet", space["table"])
    figures = run_cell("transfer", "transfer-correlation", **space)["metrics"]
    _stage(folder, "transfer", {"variant": TRAINED}, metrics=figures)


def _table(file: Path, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(file, index=False)


def _stage(
    folder: Path,
    stage: str,
    parameters: dict,
    *,
    metrics: dict | None,
    cells: list[tuple[str, list]] = (),  # type: ignore[assignment]
    prose: str = "What this stage does.",
) -> None:
    """Write the executed notebook, the metrics and the manifest of one stage."""
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(executed_notebook(stage, folder, cells, prose), folder / "notebook.ipynb")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    manifest = {
        "stage": stage,
        "parameters": {**parameters, "seed": 0},
        "inputs": {},
        "versions": VERSIONS,
        "git_commit": "0123456789abcdef",
        "seed": 0,
        "wall_seconds": 12.5,
        "finished": "2026-01-01T00:00:00Z",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def executed_notebook(stage: str, folder: Path, cells: list[tuple[str, list]], prose: str) -> nbformat.NotebookNode:
    """A notebook as papermill leaves it: parameters, injected parameters with a path, times, a progress bar."""
    injected = new_code_cell(f'# Parameters\noutput_folder = "{folder}"', execution_count=2)
    injected.metadata["tags"] = ["injected-parameters"]
    parameters = new_code_cell('output_folder = ""', execution_count=1)
    parameters.metadata["tags"] = ["parameters"]
    noise = [
        new_output("stream", name="stderr", text="work:  10%|#  | 1/10\rwork: 100%|###| 10/10"),
        new_output("stream", name="stdout", text=f"wrote {folder}/table.parquet\n"),
    ]
    notebook = new_notebook(
        metadata={
            "kernelspec": {"name": "own", "display_name": "A kernel", "language": "python"},
            "papermill": {"start_time": "2026-01-01T00:00:00", "output_path": str(folder)},
        },
        cells=[
            new_markdown_cell(f"# {stage}\n\n{prose} The loss is $-\\log \\sigma(x)$."),
            parameters,
            injected,
            new_code_cell("work()", execution_count=3, outputs=noise),
            *(new_code_cell(source, execution_count=4, outputs=outputs) for source, outputs in cells),
        ],
    )
    for cell in notebook.cells:
        cell.metadata["papermill"] = {"start_time": "2026-01-01T00:00:00", "duration": 0.1}
    return notebook


def _output(data: dict) -> nbformat.NotebookNode:
    return new_output("display_data", data=data)


@cache
def _histogram() -> nbformat.NotebookNode:
    """The figure of an evaluation; the same one for every language, since drawing it takes a while."""
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    figure, axis = plt.subplots()
    axis.hist(make_scores("base", "en", 0, 6, 3)["toxicity"].dropna())
    figure.savefig(stream, format="svg")
    plt.close(figure)
    return _output({"image/svg+xml": stream.getvalue(), "text/plain": "<Figure>"})


def run_summaries(checkout: Path, runs: Path, sections: Iterable[str] = (), part: str = "") -> None:
    """Execute the summary notebooks, one after the other in one kernel, which saves importing everything again."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    from polydetox.core import paths
    from polydetox.core.parameters import notebook_file

    records = {name: write_record(f"{PROFILE}/{name}" if name else PROFILE) for name in {"", part}}
    manager = KernelManager(kernel_name="python3")
    try:
        for section in sections or Results(records[part]).record["sections"]:
            notebook = nbformat.read(notebook_file(f"summary_{section}"), as_version=4)
            folder = paths.profile_run(PROFILE) / part / "summary" / section
            record = records["" if section == "first" else part]
            position = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
            injected = new_code_cell(f'run = "{record}"\noutput_folder = "{folder}"')
            injected.metadata["tags"] = ["injected-parameters"]
            notebook.cells.insert(position + 1, injected)
            notebook.cells.append(new_code_cell("%reset -f"))
            client = NotebookClient(notebook, km=manager, timeout=120, resources={"metadata": {"path": str(checkout)}})
            client.execute(cleanup_kc=False)
            del notebook.cells[-1]
            nbformat.write(notebook, folder / "notebook.ipynb")
    finally:
        manager.shutdown_kernel(now=True)
        shutil.rmtree(runs / "manual", ignore_errors=True)
