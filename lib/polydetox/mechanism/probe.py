"""A linear toxicity probe on the residual stream (Li et al. 2024, section 4.1; Lee et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from polydetox.core import paths
from polydetox.core.artifacts import Stage, atomic_path, read_parquet
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.data.catalogue import local_path
from polydetox.data.labelled import check_both_labels, read_labelled
from polydetox.mechanism.representations import mean_pooled
from polydetox.models.checkpoints import weights_of
from polydetox.models.texts import shortened
from polydetox.stats.agreement import cluster_auc


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


def labelled_texts(settings: Settings, continuations: str, stage: Stage) -> pd.DataFrame:
    """English texts with labels: ``text, label`` (1: toxic), and ``group``, which is never split.

    From the file that ``settings.texts`` names, else scored continuations of the base model, which the notebook pairs
    wrote, each toxic from ``settings.label_threshold`` on.
    """
    if settings.texts:
        file = local_path(settings.texts)
        table, skipped = read_labelled(file, settings.label_threshold, settings.labels)
        stage.reads(file)
        stage.skips(skipped)
        table["group"] = np.arange(len(table))
    else:
        table = read_parquet(stage.reads(continuations), ["prompt_id", "continuation", "toxicity"])
        table = table[table["continuation"].str.strip() != ""].dropna(subset=["toxicity"])
        table = pd.DataFrame({
            "text": table["continuation"].str.strip(), "group": table["prompt_id"],
            "label": (table["toxicity"] >= settings.label_threshold).astype(int),
        })  # fmt: skip
    table = table.drop_duplicates("text")
    if settings.limit and len(table) > settings.limit:
        table = table.sample(settings.limit, random_state=settings.seed)
    check_both_labels(table, settings.texts or continuations)
    return table.reset_index(drop=True)


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


def zero_shot_texts(settings: Settings, stage: Stage) -> pd.DataFrame:
    """Scored continuations of the base model in every language: ``language, text, label``, and the prompt as ``group``.

    The labels are the evaluation's scores against ``label_threshold``; an equal number of each prompt's
    continuations, the first ones, are taken.
    """
    tables = []
    columns = ["language", "prompt_id", "sample", "continuation", "toxicity"]
    everything = read_parquet(stage.reads(settings.scores), columns) if settings.scores else pd.DataFrame()
    for language in settings.languages if settings.scores else ():
        scores = everything[everything["language"] == language]
        scores = scores[scores["continuation"].str.strip() != ""].dropna(subset=["toxicity"])
        chosen = scores.sort_values(["sample", "prompt_id"], kind="stable").head(settings.texts_per_language)
        tables.append(pd.DataFrame({
            "language": language, "text": chosen["continuation"].str.strip(), "group": chosen["prompt_id"],
            "label": (chosen["toxicity"] >= settings.label_threshold).astype(int),
        }))  # fmt: skip
    columns = ["language", "text", "group", "label"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def probe_features(settings: Settings, stage: Stage, texts: Sequence[str]) -> Float[np.ndarray, "texts hidden"]:
    """The mean last-layer residual stream of each text in the untuned model; computed once and kept by the stage."""
    weights = weights_of(settings.checkpoint, stage)
    caches = [stage.folder / "features.safetensors"]
    stage.skips(shortened(weights, range(len(texts)), texts, kept="first"), "shortened")
    options = {"dtype": settings.dtype, "batch_size": settings.feature_batch_size}
    return mean_pooled(weights, texts, "last", caches, **options)[:, 0]


# --- training ---------------------------------------------------------------------------------------------------


def train_probe(
    features: Float[np.ndarray, "texts hidden"],
    labels: Int[np.ndarray, " texts"],
    *,
    learning_rate: float = 1e-4,
    batch_size: int = 10,
    epochs: int = 20,
    weight_decay: float = 0.0,
    standardise: bool = False,
    seed: int = 0,
) -> Probe:
    """Fit a linear probe with Adam on the binary cross-entropy, plus ``weight_decay / 2`` times the squared weight.

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
    groups: list[dict[str, Any]] = [{"params": [layer.weight], "weight_decay": weight_decay}, {"params": [layer.bias]}]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch_size):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(x[rows]).squeeze(-1), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = layer.weight.detach()[0].numpy() / scale
    return Probe(weight.astype(np.float32), float(layer.bias.detach()[0] - weight @ mean), scale)


def logistic_regression(features: Float[np.ndarray, "texts hidden"], labels: Int[np.ndarray, " texts"]) -> Probe:
    """The same probe from scikit-learn's logistic regression on standardised features, as a check.

    How strongly it is regularised is chosen by cross-validation, for the highest area under the ROC curve.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    strengths = {"C": np.logspace(-5, 0, 6)}
    search = GridSearchCV(LogisticRegression(max_iter=2000), strengths, scoring="roc_auc")
    fitted = search.fit((features - mean) / scale, labels).best_estimator_
    weight = fitted.coef_[0] / scale
    return Probe(weight.astype(np.float32), float(fitted.intercept_[0] - weight @ mean), scale)


def quality(
    probe: Probe, features: Float[np.ndarray, "texts hidden"], texts: pd.DataFrame
) -> dict[str, float | int | None]:
    """Accuracy, ROC-AUC and average precision of a probe; None where the texts have one label.

    ``texts`` has a row a row of ``features``: its ``label`` and its ``group`` (prompt), whole ones of which the
    bootstrap interval of the ROC-AUC draws.
    """
    from sklearn.metrics import average_precision_score

    truth, logits = texts["label"].to_numpy(), probe.logits(features)
    area = cluster_auc(truth == 1, logits, pd.factorize(texts["group"])[0])
    return {
        "texts": len(truth),
        "toxic_fraction": float(truth.mean()) if len(truth) else None,
        "accuracy": float(((logits >= 0) == truth).mean()) if len(truth) else None,
        "roc_auc": area["value"],
        "roc_auc_low": area["low"],
        "roc_auc_high": area["high"],
        "average_precision": None if area["value"] is None else float(average_precision_score(truth, logits)),
    }


def fit_probes(
    settings: Settings, features: Float[np.ndarray, "texts hidden"], texts: pd.DataFrame
) -> dict[str, Probe]:
    """The probe and, as a check, a logistic regression, both on the texts whose ``split`` is ``train``."""
    train = (texts["split"] == "train").to_numpy()
    x, y = features[train], texts.loc[train, "label"].to_numpy()
    probe = train_probe(
        x,
        y,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        standardise=settings.standardise,
        seed=settings.seed,
    )
    return {"probe": probe, "logistic regression": logistic_regression(x, y)}


QUALITY_COLUMNS = ["classifier", "texts_of", "texts", "toxic_fraction", "accuracy", "roc_auc", "roc_auc_low",
                   "roc_auc_high", "average_precision"]  # fmt: skip


def quality_table(
    probes: dict[str, Probe], features: Float[np.ndarray, "texts hidden"], texts: pd.DataFrame
) -> pd.DataFrame:
    """The quality of each probe on each part of the texts (``validation``, ``test``, or a language).

    ``texts`` has a row a row of ``features``: ``part, label, group``. The part called ``train`` is left out.
    """
    rows = []
    for name, probe in probes.items():
        for part in texts["part"].unique():
            if part != "train":
                chosen = (texts["part"] == part).to_numpy()
                rows.append({"classifier": name, "texts_of": part, **quality(probe, features[chosen], texts[chosen])})
    return pd.DataFrame(rows, columns=QUALITY_COLUMNS)


def quality_figures(texts: pd.DataFrame, quality: pd.DataFrame) -> dict[str, Any]:
    """The numbers of texts of each split, and of each classifier its quality on each part of the texts."""
    figures: dict[str, Any] = {"texts": texts["split"].value_counts().to_dict()}
    for name, rows in quality.groupby("classifier", sort=False):
        figures[str(name)] = rows.drop(columns="classifier").set_index("texts_of").to_dict("index")
    return figures
