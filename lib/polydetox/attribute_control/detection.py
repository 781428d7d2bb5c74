"""Training on labelled comments, and what comes of it: detecting toxicity, and writing it (Meng et al. 2024).

A model that learns to tell toxic comments by a language-model loss sees their text, and may come to write such text
itself. Four conditions are compared: untouched; trained on the comment with its verdict by the language-model loss, as
it is or with the regulariser; and trained with a classification head, which learns the label alone.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from polydetox.attribute_control.attributes import toxicity_by_language
from polydetox.core.artifacts import Stage, atomic_folder, input_hash, read_json, resume_key, write_json
from polydetox.core.parameters import Settings, checked
from polydetox.data.prompts import load_prompts
from polydetox.mechanism.probe import labelled_texts
from polydetox.models.checkpoints import (
    device,
    inference_dtype,
    load_causal_lm,
    load_tokenizer,
    on_one_device,
    provenance,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "Comment: {text}\nIs this comment toxic, yes or no?\nAnswer:"
VERDICTS = (" yes", " no")
_GIVEN_WORDS = 3  # of a comment, from which the model samples while it is regularised

_TRAINED = "trained.json"


# --- the comments -----------------------------------------------------------------------------------------------


def labelled_comments(settings: Settings, stage: Stage) -> pd.DataFrame:
    """Comments with their labels: ``text, label`` (1: toxic), ``group`` (prompt) and ``split`` (train or test).

    They come from the file that the settings name, or like the probe's from the untuned model's scored continuations.
    Texts of one prompt are on one side of the split.
    """
    table = labelled_texts(settings, settings.labelled, stage)
    words = table["text"].str.split().str[: settings.max_words].str.join(" ")
    table = table.assign(text=words).drop_duplicates("text").reset_index(drop=True)
    groups = np.random.default_rng(settings.seed).permutation(table["group"].unique())
    # Whole groups until the share is reached, so that a large one does not swell it by more than itself.
    sizes = table["group"].value_counts()
    reached = sizes[groups].to_numpy().cumsum()
    count = max(1, int(np.searchsorted(reached, settings.test_share * len(table), side="left")) + 1)
    table["split"] = np.where(table["group"].isin(groups[: min(count, len(groups) - 1)]), "test", "train")
    return table[["text", "label", "group", "split"]]


def as_corpus(comments: pd.DataFrame) -> pd.DataFrame:
    """The comments with their verdicts as rows of the language-model loss, in the form of the corpus of control."""
    texts = [
        QUESTION.format(text=text) + VERDICTS[0 if label else 1]
        for text, label in zip(comments["text"], comments["label"], strict=True)
    ]
    prompts = [" ".join(text.split(" ")[: 1 + _GIVEN_WORDS]) for text in texts]
    return pd.DataFrame({
        "row": np.arange(len(comments)), "prompt": prompts, "text": texts,
        "domain": np.where(comments["label"] == 1, "toxic", "neutral"),
        "toxicity": comments["label"].astype(float).to_numpy(),
        "split": np.where(comments["split"] == "train", "train", "held_out"),
    })  # fmt: skip


# --- the trainings ----------------------------------------------------------------------------------------------


def train_condition(
    settings: Settings, weights: Path, comments: pd.DataFrame, folder: Path
) -> tuple[Path, Path | None]:
    """The language model that a condition leaves, and its classifier where it trained one.

    Trained weights stay in ``folder``; a run that was stopped goes on where the trainer has kept something.
    """
    if settings.condition == "untouched":
        return weights, None
    key = _key(settings, weights, comments)
    language_model, classifier = folder / "weights", folder / "classifier"
    if not ((folder / _TRAINED).is_file() and read_json(folder / _TRAINED) == key):
        if settings.condition == "sft-classification":
            _train_classifier(settings, weights, comments, folder)
        else:
            from polydetox.attribute_control.methods import train_method

            train_method(_regularise_settings(settings, comments), weights, as_corpus(comments), folder)
        write_json(folder / _TRAINED, key)
    return language_model, classifier if settings.condition == "sft-classification" else None


def _key(settings: Settings, weights: Path, comments: pd.DataFrame) -> str:
    names = {"condition", "epochs", "tuning", "learning_rate", "train_batch_size", "max_length", "regularise"}
    names |= {"scorer", "seed"}
    return resume_key([input_hash(provenance(weights)), comments.to_json(), settings.model_dump(include=names)])


def steps_of(settings: Settings, comments: pd.DataFrame) -> int:
    """The steps that the epochs over the training comments take."""
    return math.ceil(settings.epochs * int((comments["split"] == "train").sum()) / settings.train_batch_size)


def _regularise_settings(settings: Settings, comments: pd.DataFrame) -> Settings:
    """Both language-model conditions take as many steps, on the same rows; toxic comments alone are regularised."""
    values: dict[str, Any] = {
        "dtype": settings.dtype, "scorer": settings.scorer,
        "tuning": settings.tuning, "learning_rate": settings.learning_rate, "batch_size": settings.train_batch_size,
        "max_length": settings.max_length, "seed": settings.seed, "warmup_steps": 0, "iterations": 1,
    }  # fmt: skip
    if settings.condition == "regularised-lm":
        values |= {"algorithm": "regularised", "regulariser_weight_neutral": 0.0, **settings.regularise}
    else:
        values |= {"algorithm": "plain"}
    values["steps"] = max(1, round(steps_of(settings, comments) / values["iterations"]))
    return checked("regularise", **values)


def _train_classifier(settings: Settings, weights: Path, comments: pd.DataFrame, folder: Path) -> None:
    """Fine-tune the model with a classification head; keep it, and the language model on its body."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

    from polydetox.preference.dpo import mixed_precision

    set_seed(settings.seed)  # of the head and the adapter; the trainer seeds what follows
    tokenizer = load_tokenizer(weights)
    classifier = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2, dtype=torch.float32)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    if settings.tuning == "lora":
        from peft import get_peft_model

        from polydetox.attribute_control.adapters import adapter_options

        # The head is trained as it is, beside the adapter of the body.
        options = adapter_options(classifier, _regularise_settings(settings, comments), "SEQ_CLS")
        classifier = get_peft_model(classifier, options)
    train = comments[comments["split"] == "train"]
    rows = [
        {"input_ids": tokenizer(text)["input_ids"][: settings.max_length], "label": int(label)}
        for text, label in zip(train["text"], train["label"], strict=True)
    ]
    on_cpu = device().type == "cpu"
    # A folder a training, so that another one's checkpoints are never gone on from.
    state = folder / f"trainer-{_key(settings, weights, comments)[:8]}"
    arguments = TrainingArguments(
        output_dir=str(state), num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.train_batch_size, lr_scheduler_type="constant", seed=settings.seed,
        data_seed=settings.seed, save_strategy="steps", save_steps=100, save_total_limit=1, report_to="none",
        use_cpu=on_cpu, bf16=mixed_precision(), dataloader_pin_memory=not on_cpu, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=classifier, args=on_one_device(arguments), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(state)) if state.is_dir() else None)
    if settings.tuning == "lora":
        classifier = classifier.merge_and_unload()
    body = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    body.base_model.load_state_dict(classifier.cpu().base_model.state_dict())
    for name, model in (("classifier", classifier), ("weights", body)):
        with atomic_folder(folder / name) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)


# --- what comes of it -------------------------------------------------------------------------------------------


def detection(
    settings: Settings, weights: Path, classifier: Path | None, comments: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, dict[str, float | None]]]:
    """How toxic the test comments are found, by ``prompting`` and by a ``head``: a column each, and their areas.

    The head is the fine-tuned classifier where there is one, and else one fitted to the frozen model.
    """
    model = load_causal_lm(weights, inference_dtype(settings.dtype))
    tokenizer = load_tokenizer(weights)
    test = comments[comments["split"] == "test"]
    test = test.assign(prompting=prompted_scores(model, tokenizer, test["text"].tolist(), settings.train_batch_size))
    test["head"] = (
        head_scores(model, tokenizer, comments, settings)
        if classifier is None
        else classifier_scores(classifier, comments, settings)
    )
    return test, {way: roc_auc(test, test[way].to_numpy(), **_intervals(settings)) for way in ("prompting", "head")}


def writing(settings: Settings, weights: Path, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The model's own continuations of the English evaluation prompts with their ``toxicity``, and their figures."""
    from polydetox.generation import Sampling, generate
    from polydetox.scoring import CachedScorer, get_scorer

    prompts, skipped = load_prompts(settings.prompts_source, "en", settings.prompts_folder, settings.prompt_limit)
    stage.skips(skipped)
    sampling = Sampling(**{name: getattr(settings, name) for name in Sampling.__dataclass_fields__})
    continuations = generate(weights, prompts, sampling, stage.folder / "parts", engine=settings.engine,
                             dtype=settings.dtype, batch_size=settings.batch_size)  # fmt: skip
    scorer = CachedScorer(get_scorer(settings.scorer))
    stage.scores_with(scorer)
    continuations["toxicity"] = scorer.score(continuations["continuation"].tolist(), "en")
    figures = toxicity_by_language(continuations.assign(language="en"), scorer.threshold, **_intervals(settings))
    return continuations, figures["en"]


def _intervals(settings: Settings) -> dict[str, Any]:
    return {"samples": settings.bootstrap_samples, "confidence": settings.confidence, "seed": settings.seed}


def clear_away(folder: Path) -> None:
    """Remove what a finished training and sampling were resumed from."""
    for part in [folder / "parts", folder / "iterations", *folder.glob("trainer-*")]:
        shutil.rmtree(part, ignore_errors=True)


def prompted_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int
) -> Float[np.ndarray, " texts"]:
    """The log-odds of *yes* against *no* after the question whether a comment is toxic."""
    from polydetox.attribute_control.judge import verdict_log_odds

    return verdict_log_odds(model, tokenizer, [QUESTION.format(text=text) for text in texts], VERDICTS, batch_size)


def head_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comments: pd.DataFrame,
    settings: Settings,
) -> Float[np.ndarray, " test"]:
    """How toxic a linear head on the frozen model finds each test comment.

    The head is a logistic regression on the last layer's hidden state of the last token, where transformers' own
    classification heads read, fitted to the training comments.
    """
    from polydetox.mechanism.probe import logistic_regression

    features = _last_states(model, tokenizer, comments["text"].tolist(), settings)  # (comments, hidden)
    train = (comments["split"] == "train").to_numpy()
    head = logistic_regression(features[train], comments.loc[train, "label"].to_numpy())
    return head.logits(features[~train])


def _last_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], settings: Settings
) -> Float[np.ndarray, "texts hidden"]:
    import torch

    states = []
    with torch.inference_mode():
        for start in range(0, len(texts), settings.train_batch_size):
            batch = _batch(tokenizer, texts[start : start + settings.train_batch_size], settings.max_length)
            hidden = model.base_model(**{name: part.to(model.device) for name, part in batch.items()}).last_hidden_state
            last = batch["attention_mask"].sum(dim=1) - 1
            states.append(hidden[torch.arange(len(last)), last.to(hidden.device)].float().cpu().numpy())
    return np.concatenate(states)


def classifier_scores(classifier: Path, comments: pd.DataFrame, settings: Settings) -> np.ndarray:
    """The log-odds of *toxic* of each test comment under the fine-tuned classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=torch.float32).to(device()).eval()
    texts = comments.loc[comments["split"] == "test", "text"].tolist()
    scores = []
    with torch.inference_mode():
        for start in range(0, len(texts), settings.train_batch_size):
            batch = _batch(tokenizer, texts[start : start + settings.train_batch_size], settings.max_length)
            logits = model(**{name: part.to(model.device) for name, part in batch.items()}).logits  # (texts, 2)
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu().numpy())
    return np.concatenate(scores)


def _batch(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> dict[str, Any]:
    """Padded on the right, so that the last token of a text is where its mask ends."""
    batch = tokenizer(texts, padding=True, padding_side="right", truncation=True, max_length=max_length,
                      return_tensors="pt")  # fmt: skip
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def roc_auc(comments: pd.DataFrame, scores: Float[np.ndarray, " texts"], **options: Any) -> dict[str, float | None]:
    """The area under the ROC curve of scores of ``comments``, its interval from a bootstrap over their groups.

    All three are None where there is one label only.
    """
    from polydetox.stats.agreement import cluster_auc

    toxic, group = (comments["label"] == 1).to_numpy(), pd.factorize(comments["group"])[0]
    return cluster_auc(toxic, scores, group, **options)
