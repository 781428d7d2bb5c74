"""The worked examples of CONTRIBUTING.md: their code is taken from the file, and done in a temporary checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from polydetox.workflow import load
from tiny import CHECKOUT, TEXTS


def examples(heading: str, file: str = "CONTRIBUTING.md") -> list[str]:
    """The blocks of code below a heading."""
    text = (CHECKOUT / file).read_text("utf-8")
    section = re.search(rf"^## {heading}.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return [
        textwrap.dedent(code) for code in re.findall(r"^ *```\w+\n(.*?)^ *```$", section[0], re.DOTALL | re.MULTILINE)
    ]


def own(checkout: Path, *names: str) -> None:
    """Give the checkout copies, which a test may change."""
    for name in names:
        (checkout / name).unlink()
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, checkout / name)


def change_profile(checkout: Path, **changes) -> None:
    file = checkout / "params/profiles/tiny.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def execute(checkout: Path, notebook: str, folder: Path, **parameters) -> None:
    given = json.dumps(parameters | {"output_folder": str(folder)})
    environment = os.environ | {"POLYDETOX_ROOT": str(checkout), "HF_HUB_OFFLINE": "1"}
    file = next((checkout / "notebooks").rglob(f"{notebook}.ipynb"))
    command = [sys.executable, "-m", "polydetox", "execute", "--profile", "tiny", "--parameters", given, "--",
               str(file), str(folder / "notebook.ipynb")]  # fmt: skip
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", [("A model",), ("A new model in five lines", "README.md")])
def test_a_model_is_one_file(checkout, place):
    (block,) = examples(*place)
    (checkout / "params/models/my-model.yaml").write_text(block)
    change_profile(checkout, models=["my-model"])
    run = load("tiny")
    assert run.models == ["my-model"] and run.model_file("my-model").hub == "owner/my-model"
    assert {"dpo", "generate", "evaluate"} <= {job.stage for job in run.jobs.values()}
    assert run.model_file("my-model").resources.gpu == 1


def test_a_scorer_is_a_class():
    space: dict = {}
    exec(examples("A scorer")[0], space)
    scorer = space["ShoutingScorer"]()
    values, reasons, _ = zip(*scorer.results(["STOP it", "stop", "123!"], "en"), strict=True)
    assert values == pytest.approx((4 / 6, 0.0, float("nan")), nan_ok=True) and reasons == ("", "", "no letters")


def test_a_loss_is_a_function_and_a_name(checkout, tiny_checkpoints, tmp_path):
    (block,) = examples("A loss")
    own(checkout, "notebooks")
    file = checkout / "notebooks/preference/dpo.ipynb"
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"simpo"]', '"simpo", "slic"]')
        cell.source = re.sub(r"^own_losses = .*$", lambda line: f"{line[0]}\n{block}", cell.source, flags=re.MULTILINE)
    nbformat.write(notebook, file)
    change_profile(checkout, variants={"dpo": {"pairs": "on-policy", "dpo": {"loss": "slic"}}})
    assert load("tiny").resolved("dpo", model="tiny", variant="dpo")["loss"] == "slic"

    file = tmp_path / "pairs.parquet"
    columns = {"prompt_id": list("abcd"), "prompt": TEXTS[:4], "chosen": " loud", "rejected": " heute wieder"}
    pd.DataFrame(columns).to_parquet(file)
    folder = tmp_path / "slic"
    execute(checkout, "dpo", folder, checkpoint=str(tiny_checkpoints["llama"]), pairs=str(file), loss="slic",
            max_steps=4, eval_steps=2, warmup_steps=0, learning_rate=1e-3, held_out_share=0.25)  # fmt: skip
    log = pd.read_parquet(folder / "training_log.parquet").query("split == 'held_out' and metric == 'loss'")
    losses = log.set_index("step")["value"]
    assert losses[4] < losses[0] and (folder / "weights/model.safetensors").is_file()


def test_a_stage_is_a_notebook_and_a_rule_and_reaches_the_report(checkout, tmp_path):
    from polydetox.results.collect import Results

    parameters, work, rule, shown = examples("A stage")
    own(checkout, "notebooks", "rules", "Snakefile")
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in (parameters, work)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = nbformat.read(CHECKOUT / "notebooks/evaluation/evaluate.ipynb", as_version=4).metadata
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.write(notebook, checkout / "notebooks/evaluation/lengths.ipynb")
    with (checkout / "rules/evaluation.smk").open("a") as file:
        file.write(f"\n\n{rule}")
    run = load("tiny")
    jobs = [job for job in run.jobs.values() if job.stage == "lengths"]
    assert {job.wildcards["variant"] for job in jobs} == {"base", "dpo", "dpo-lora"}
    assert run.stages["lengths"]["title"] == "Length of continuations"

    table = pd.DataFrame({"language": ["en", "en", "de"], "continuation": ["a b c", "a", "x " * 99]})
    table.to_parquet(tmp_path / "scores.parquet")
    base = next(job for job in jobs if job.wildcards["variant"] == "base")
    execute(checkout, "lengths", checkout / base.folder, scores=str(tmp_path / "scores.parquet"))
    (checkout / run.folder / "run.json").write_text(run.record())
    results = Results(f"{run.folder}/run.json")
    space = {"pd": pd, "results": results}
    found = eval(shown, space)
    assert found["tiny", "base"].to_dict() == {"en": 2.0, "de": 50.0}
