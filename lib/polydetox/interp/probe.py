"""A linear toxicity probe on the residual stream (Li et al. 2024, section 4.1; Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage, atomic_path, finished, read_parquet
from polydetox.errors import UserError
from polydetox.params import ProbeParameters, load_model, load_profile

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# What a file of labelled texts may call its two columns; the second line is Jigsaw's.
TEXT_COLUMNS = ("text", "comment_text")
LABEL_COLUMNS = ("label", "toxic", "toxicity", "target")


@dataclass(frozen=True)
class Probe:
    """``weight @ x + bias`` is the logit that a text with mean residual stream ``x`` is toxic.

    ``scale`` is the unit in which each direction of the residual stream was measured for the training (ones, or its
    standard deviation over the texts); angles to the probe are taken in these units.
    """

    weight: Float[np.ndarray, " hidden"]
    bias: float
    scale: Float[np.ndarray, " hidden"]

    def logits(self, features: Float[np.ndarray, "texts hidden"]) -> Float[np.ndarray, " texts"]:
        """The logit of each text."""
        return features @ self.weight + self.bias

    def save(self, path: Path) -> None:
        """Write the probe as safetensors, atomically."""
        from safetensors.numpy import save_file

        tensors = {"weight": self.weight, "bias": np.array([self.bias]), "scale": self.scale}
        with atomic_path(path) as temporary:
            save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, temporary)

    @staticmethod
    def load(path: Path) -> Probe:
        """Read a probe that :meth:`save` wrote."""
        from safetensors.numpy import load_file

        if not path.is_file():
            raise UserError(f"{paths.relative(path)}: no such file; run the stage probe first")
        stored = load_file(path)
        return Probe(stored["weight"], float(stored["bias"][0]), stored["scale"])


# --- labelled texts ---------------------------------------------------------------------------------------------


def labelled_texts(settings: ProbeParameters, stage: Stage) -> pd.DataFrame:
    """English texts with labels: ``text, label`` (1: toxic), and ``group``, which is never split.

    From a file where the settings name one, else the untuned model's own continuations of the English training
    prompts, labelled by the scorer that ranked them.
    """
    if settings.texts:
        table = read_labelled(stage.reads(Path(settings.texts).expanduser()), settings.label_threshold)
        table["group"] = np.arange(len(table))
    else:
        model = load_model(settings.model).name
        file = paths.pairs(settings.profile, model, "on-policy") / "continuations.parquet"
        if not file.is_file():
            raise UserError(
                f"{paths.relative(file)}: no such file; give labelled texts as 'probe: texts: <file>', or list "
                "on-policy pairs in the profile"
            )
        table = read_parquet(stage.reads(file), ["prompt_id", "continuation", "toxicity"])
        table = table[table["continuation"].str.strip() != ""].dropna(subset=["toxicity"])
        table = pd.DataFrame({
            "text": table["continuation"].str.strip(), "group": table["prompt_id"],
            "label": (table["toxicity"] >= settings.label_threshold).astype(int),
        })  # fmt: skip
    table = table.drop_duplicates("text")
    if settings.limit and len(table) > settings.limit:
        table = table.sample(settings.limit, random_state=settings.seed)
    if table["label"].nunique() < 2:
        raise UserError("probe: all texts have one label; give texts of both kinds, or another 'label_threshold'")
    return table.reset_index(drop=True)


def read_labelled(path: Path, threshold: float) -> pd.DataFrame:
    """Labelled texts of a CSV, JSON Lines or Parquet file: ``text, label``; labels from ``threshold`` up are toxic."""
    name = paths.relative(path)
    readers: dict[str, Any] = {
        ".csv": pd.read_csv, ".jsonl": lambda file: pd.read_json(file, lines=True), ".parquet": pd.read_parquet,
    }  # fmt: skip
    if path.suffix not in readers:
        raise UserError(f"{name}: not a kind of file that can be read; use one of {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{name}: no such file; 'probe: texts' should name a file with columns text and label")
    try:
        table = readers[path.suffix](path)
    except Exception as error:  # pandas raises many kinds; all mean that the file is damaged
        raise UserError(f"{name}: not readable ({str(error).splitlines()[0][:120]})") from None
    columns = []
    for wanted in (TEXT_COLUMNS, LABEL_COLUMNS):
        found = [column for column in wanted if column in table.columns]
        if not found:
            raise UserError(f"{name}: no column {' or '.join(wanted)} (it has {', '.join(map(str, table.columns[:8]))})")
        columns.append(found[0])
    labels = pd.to_numeric(table[columns[1]], errors="coerce")
    if labels.isna().any():
        row = int(np.flatnonzero(labels.isna())[0])
        raise UserError(f"{name}: row {row + 1}: column {columns[1]!r} is not a number ({table[columns[1]][row]!r})")
    texts = table[columns[0]].fillna("").astype(str).str.strip()
    result = pd.DataFrame({"text": texts, "label": (labels >= threshold).astype(int)})
    return result[result["text"] != ""].reset_index(drop=True)


def split(table: pd.DataFrame, shares: tuple[float, float], seed: int) -> pd.Series:
    """``train``, ``validation`` or ``test`` for each row, by ``group``: no group is in two of them."""
    groups = np.random.default_rng(seed).permutation(table["group"].unique())
    validation, test = (max(1, round(share * len(groups))) for share in shares)
    if validation + test >= len(groups):
        raise UserError(f"probe: only {len(groups)} groups of texts, too few to hold any out")
    held = dict.fromkeys(groups[:validation], "validation") | dict.fromkeys(
        groups[validation : validation + test], "test"
    )
    return table["group"].map(held).fillna("train")


def zero_shot_texts(settings: ProbeParameters, stage: Stage) -> pd.DataFrame:
    """Continuations of the untuned model in every language of the run that was evaluated: ``language, text, label``.

    The labels are the evaluation's scores against ``label_threshold``; an equal number of each prompt's
    continuations, the first ones, are taken.
    """
    model, profile = load_model(settings.model).name, load_profile(settings.profile)
    tables = []
    for language in profile.languages:
        folder = paths.evaluate(profile.name, model, "base", language)
        if not finished(folder):
            continue
        scores = read_parquet(stage.reads(folder / "scores.parquet"), ["prompt_id", "sample", "continuation", "toxicity"])
        scores = scores[scores["continuation"].str.strip() != ""].dropna(subset=["toxicity"])
        chosen = scores.sort_values(["sample", "prompt_id"], kind="stable").head(settings.texts_per_language)
        tables.append(pd.DataFrame({
            "language": language, "text": chosen["continuation"].str.strip(),
            "label": (chosen["toxicity"] >= settings.label_threshold).astype(int),
        }))  # fmt: skip
    columns = ["language", "text", "label"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


# --- training ---------------------------------------------------------------------------------------------------


def train_probe(
    features: Float[np.ndarray, "texts hidden"],
    labels: Int[np.ndarray, " texts"],
    *,
    learning_rate: float = 1e-4,
    batch_size: int = 10,
    epochs: int = 20,
    standardise: bool = False,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe with Adam on the binary cross-entropy.

    With ``standardise`` each direction is scaled to unit variance over the texts for the training; the probe that
    comes back works on the features as they are. Models whose residual stream has a few huge directions need it.
    """
    import torch

    torch.manual_seed(seed)
    mean = features.mean(axis=0) if standardise else np.zeros(features.shape[1], np.float32)
    scale = features.std(axis=0) + 1e-6 if standardise else np.ones(features.shape[1], np.float32)
    x = torch.from_numpy(((features - mean) / scale).astype(np.float32))
    y = torch.from_numpy(labels.astype(np.float32))
    layer = torch.nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=learning_rate)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch_size):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(x[rows]).squeeze(-1), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.weight.detach()[0].numpy() / scale
    return Probe(weight.astype(np.float32), float(layer.bias.detach()[0] - weight @ mean), scale)


def logistic_regression(
    features: Float[np.ndarray, "texts hidden"], labels: Int[np.ndarray, " texts"]
) -> Probe:
    """The same probe from scikit-learn's logistic regression on standardised features, as a check."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    fitted = LogisticRegression(max_iter=2000, C=0.01).fit((features - mean) / scale, labels)
    weight = fitted.coef_[0] / scale
    return Probe(weight.astype(np.float32), float(fitted.intercept_[0] - weight @ mean), scale)


def quality(probe: Probe, features: np.ndarray, labels: Sequence[int] | np.ndarray) -> dict[str, float | int | None]:
    """Accuracy, ROC-AUC and average precision of a probe; None where the texts have one label."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, logits = np.asarray(labels), probe.logits(features)
    both = len(np.unique(truth)) == 2
    return {
        "texts": len(truth),
        "toxic_share": float(truth.mean()) if len(truth) else None,
        "accuracy": float(((logits >= 0) == truth).mean()) if len(truth) else None,
        "roc_auc": float(roc_auc_score(truth, logits)) if both else None,
        "average_precision": float(average_precision_score(truth, logits)) if both else None,
    }
