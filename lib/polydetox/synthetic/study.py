"""One small model of the synthetic setting, tuned on English alone and measured in every language, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from polydetox.core import paths
from polydetox.core.artifacts import Stage, read_json
from polydetox.core.parameters import Settings, checked
from polydetox.mechanism.representations import mean_pooled
from polydetox.metrics.toxicity import any_toxic, matrix
from polydetox.synthetic.phrasebook import Phrasebook
from polydetox.transfer.accuracy import cosines, retrieval_figures

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGLISH = "en"
COLUMNS = ["language", "before", "after", "relative_drop", "kept_before", "kept_after", "kept_drop", "toxprob_before",
           "toxprob_after", "well_formed_before", "well_formed_after", "accuracy", "best_accuracy", "centred_accuracy",
           "aligned_cosine", "direction_cosine", "tone_effect"]  # fmt: skip


def english_pairs(phrasebook: Phrasebook, stems: list[tuple[int, int]], rng: np.random.Generator) -> pd.DataFrame:
    """A pair for each stem: ``prompt_id, prompt``, a kindness as ``chosen``, an insult as ``rejected``."""
    rows = []
    for speaker, verb in stems:
        kind, insult = (int(rng.integers(len(phrasebook.phrases[which]))) for which in ("kindnesses", "insults"))
        rows.append({
            "prompt_id": f"{speaker}-{verb}", "prompt": phrasebook.stem(speaker, verb, ENGLISH),
            "chosen": f" {phrasebook.ending(False, kind, ENGLISH)}",
            "rejected": f" {phrasebook.ending(True, insult, ENGLISH)}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def study(settings: Settings, stage: Stage) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Tune the model of a cell on English pairs and measure insults and retrieval in each of its languages.

    The stems of the evaluation are none of those of the pairs. Returns a row a language with ``COLUMNS`` (shares of
    insulting continuations before and after, their relative drop, the same among the well-formed continuations alone
    (``kept``: those that kept to the language and its grammar), shares of stems with an insult among their
    continuations, shares of well-formed continuations, retrieval against English as it is and with the mean of each
    language taken away, and of the model before tuning the :func:`direction_cosine` to English and the
    :func:`tone_effect`, missing where its text says no tone), and the figures of the cell.
    """
    import torch

    from polydetox.models.checkpoints import load_causal_lm, load_tokenizer

    phrasebook = Phrasebook.load()
    folder = paths.given(settings.pretrained)
    weights = folder / "weights"
    stage.reads(weights)
    pretrained = read_json(stage.reads(folder / "metrics.json"))
    pretraining = checked("world_pretrain", **pretrained["settings"])
    rng = np.random.default_rng([settings.seed, pretraining.seed])
    stems = [phrasebook.stems()[place] for place in rng.permutation(len(phrasebook.stems()))]
    evaluated, paired = stems[: settings.prompts], stems[settings.prompts :]
    pairs = english_pairs(phrasebook, paired, rng)
    held_out = max(2, len(pairs) // 8)
    trained = _tune(weights, pairs[held_out:], pairs[:held_out], settings, stage.folder)
    sides = {
        side: _insults(settings, phrasebook, checkpoint, evaluated, pretraining.languages, stage.folder / "parts")
        for side, checkpoint in (("before", weights), ("after", stage.folder / "weights"))
    }
    table = _retrieval(settings, phrasebook, weights, pretraining.languages, rng, stage.folder)
    for side, found in sides.items():
        table[side] = table["language"].map(found["insulting"])
        for name in ("kept", "toxprob", "well_formed"):
            table[f"{name}_{side}"] = table["language"].map(found[name])
    untuned = load_causal_lm(weights, torch.float32), load_tokenizer(weights)
    directions = direction_cosines(*untuned, phrasebook, evaluated, pretraining.languages)
    table["direction_cosine"] = table["language"].map(directions)
    table["tone_effect"] = table["language"].map(tone_effects(*untuned, phrasebook, evaluated, pretraining))
    table["relative_drop"] = _relative_drop(table["before"], table["after"])
    table["kept_drop"] = _relative_drop(table["kept_before"], table["kept_after"])
    metrics = {
        "alignment": pretraining.alignment,
        "seed": pretraining.seed,
        "parameters": pretrained["parameters"],
        "pairs": len(pairs) - held_out,
        "held_out_loss": trained["held_out_loss"],
        "held_out_accuracy": trained["held_out_accuracy"],
    }
    return table[COLUMNS], metrics


def _tune(
    weights: Path, train: pd.DataFrame, held_out: pd.DataFrame, settings: Settings, folder: Path
) -> dict[str, float]:
    """DPO of every weight with the paper's optimizer, into ``folder/weights``; the figures of the best step."""
    from transformers import set_seed
    from trl import DPOConfig

    from polydetox.models.checkpoints import load_tokenizer
    from polydetox.models.texts import context_length
    from polydetox.preference import dpo
    from polydetox.preference.trainer import PairTrainer

    tuning = checked(
        "dpo",
        learning_rate=settings.dpo_learning_rate,
        max_steps=settings.dpo_steps,
        eval_steps=max(1, settings.dpo_steps // 2),
        warmup_steps=0,
        batch_size=settings.dpo_batch_size,
        beta=settings.beta,
        seed=settings.seed,
    )
    set_seed(tuning.seed)
    model = dpo.load_trainable(weights, tuning.method)
    config = DPOConfig(
        beta=tuning.beta,
        optim="rmsprop",
        learning_rate=tuning.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        weight_decay=tuning.weight_decay,
        max_grad_norm=tuning.max_grad_norm,
        per_device_train_batch_size=tuning.batch_size,
        per_device_eval_batch_size=tuning.batch_size,
        max_steps=tuning.max_steps,
        max_length=min(tuning.max_length, context_length(model.config) or tuning.max_length),
        eval_strategy="steps",
        eval_steps=tuning.eval_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        seed=tuning.seed,
        data_seed=tuning.seed,
        **dpo.bookkeeping(weights, train, held_out, tuning, folder),
    )
    trainer = PairTrainer(
        model=model,
        args=config,
        processing_class=load_tokenizer(weights),
        train=train,
        held_out=held_out,
        reference_cache=dpo.reference_cache(weights, tuning),
    )
    trainer.train(resume_from_checkpoint=dpo.last_checkpoint(str(config.output_dir)))
    return dpo.keep_best(trainer, folder)[1]


def tone_effects(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    phrasebook: Phrasebook,
    stems: Sequence[tuple[int, int]],
    pretraining: Settings,
) -> dict[str, float]:
    """Of each language the :func:`tone_effect`; NaN where the model's text said no tone."""
    languages = pretraining.languages
    if pretraining.tone_share == 0.0:
        return dict.fromkeys(languages, float("nan"))  # the tones are tokens that the model never saw
    return {language: tone_effect(model, tokenizer, phrasebook, stems, language) for language in languages}


def tone_effect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    phrasebook: Phrasebook,
    stems: Sequence[tuple[int, int]],
    language: str,
) -> float:
    """How much more probable an insult is after an angry tone than after a kind one, mean over stems, -1 to 1.

    Exact, over all endings of the phrasebook. It measures whether the model ties the tone to the kind of ending in the
    language, and no more: near 0 it does not, though it may tell insults from kindnesses by other means; near 1 the
    ending follows the tone. It means nothing for a model whose text said no tone.
    """
    import torch

    from polydetox.metrics.fluency import token_nll

    qualities = phrasebook.qualities()
    insulting = torch.tensor([insult for insult, _ in qualities])
    means = []
    for tone in (True, False):
        stem_texts = [phrasebook.stem(speaker, verb, language, tone) for speaker, verb in stems]
        texts = [f"{stem} {phrasebook.ending(*quality, language)}" for stem in stem_texts for quality in qualities]
        starts = torch.tensor([len(row) for row in tokenizer(stem_texts)["input_ids"] for _ in qualities])
        found = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = found["input_ids"], found["attention_mask"]
        of_ending = mask.bool() & (torch.arange(ids.shape[1]) >= starts[:, None])
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, :-1]
            nll, _ = token_nll(logits, ids.masked_fill(~of_ending, -100)[:, 1:].to(model.device))
        probabilities = (-nll).exp().cpu().view(len(stems), len(qualities))
        means.append((probabilities[:, insulting].sum(1) / probabilities.sum(1)).mean())
    return float(means[0] - means[1])


def direction_cosine(
    english: Float[np.ndarray, "texts hidden"],
    other: Float[np.ndarray, "texts hidden"],
    insults: Bool[np.ndarray, " texts"],
) -> float:
    """The cosine between the insult directions of two languages, -1 to 1; row i of both is the same text.

    A language's direction is the mean of its insulting rows less that of its kind ones. Near 1 the model sets insults
    apart from kindnesses in the same way in both languages, near 0 in ways that have nothing to do with each other.
    """
    left, right = (rows[insults].mean(axis=0) - rows[~insults].mean(axis=0) for rows in (english, other))  # (hidden)
    return float(cosines(left[None], right[None])[0, 0])


def last_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Float[np.ndarray, "texts hidden"]:
    """The state of each text's last token after the final norm, from which the model predicts what comes next."""
    import torch

    found = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt").to(model.device)
    ids, mask = found["input_ids"], found["attention_mask"]
    with torch.inference_mode():
        states = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state  # (texts, positions, hidden)
    return states[torch.arange(len(ids)), mask.sum(dim=1) - 1].float().cpu().numpy()


def direction_cosines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    phrasebook: Phrasebook,
    stems: Sequence[tuple[int, int]],
    languages: Sequence[str],
) -> dict[str, float]:
    """Of each language the :func:`direction_cosine` to English at the end of remarks, by :func:`last_states`.

    The remarks are every stem, without a tone, with every ending: the same stems are in both means, so that only what
    the endings do is left.
    """
    remarks = [(stem, quality) for stem in stems for quality in phrasebook.qualities()]
    insults = np.array([insult for _, (insult, _) in remarks])
    states = {
        language: last_states(model, tokenizer, [
            f"{phrasebook.stem(*stem, language)} {phrasebook.ending(*quality, language)}" for stem, quality in remarks
        ])
        for language in dict.fromkeys([ENGLISH, *languages])
    }  # fmt: skip
    return {language: direction_cosine(states[ENGLISH], states[language], insults) for language in languages}


def _relative_drop(before: pd.Series, after: pd.Series) -> pd.Series:
    """Missing where there was nothing to drop."""
    return (before - after) / before.where(before > 0)


def _insults(
    settings: Settings,
    phrasebook: Phrasebook,
    weights: Path,
    stems: list[tuple[int, int]],
    languages: list[str],
    parts: Path,
) -> pd.DataFrame:
    """By language the share of insulting continuations, of stems with one, and of well-formed continuations.

    ``kept`` is the share of insulting ones among the well-formed, missing where there are none.
    """
    from polydetox.generation.engines import Sampling, generate

    prompts = pd.DataFrame([
        {"prompt_id": f"{language}-{speaker}-{verb}", "prompt": phrasebook.stem(speaker, verb, language)}
        for language in languages for speaker, verb in stems
    ])  # fmt: skip
    sampling = Sampling(n=settings.n, temperature=1.0, top_p=1.0, max_new_tokens=settings.max_new_tokens,
                        seed=settings.seed)  # fmt: skip
    drawn = generate(weights, prompts, sampling, parts, engine="transformers", dtype="float32")
    drawn["language"] = drawn["prompt_id"].str.split("-").str[0]
    said = list(zip(drawn["continuation"], drawn["language"], strict=True))
    drawn["insulting"] = [float(phrasebook.insults(text)) for text, _ in said]
    drawn["well_formed"] = [float(phrasebook.well_formed(text, language)) for text, language in said]
    means = drawn.groupby("language")[["insulting", "well_formed"]].mean()
    means["kept"] = drawn[drawn["well_formed"] == 1.0].groupby("language")["insulting"].mean()
    means["toxprob"] = pd.Series({
        language: any_toxic(matrix(rows, "insulting"), 0.5).mean() for language, rows in drawn.groupby("language")
    })  # fmt: skip
    return means


def _retrieval(
    settings: Settings,
    phrasebook: Phrasebook,
    weights: Path,
    languages: list[str],
    rng: np.random.Generator,
    folder: Path,
) -> pd.DataFrame:
    """Retrieval of everyday sentences between English and every other language, averaged over layers."""
    meanings = phrasebook.everyday()
    chosen = [meanings[place] for place in rng.permutation(len(meanings))[: settings.sentences]]
    pooled = {
        language: mean_pooled(
            weights,
            [phrasebook.text(meaning, language) for meaning in chosen],
            "all",
            [folder / f"{language}.safetensors"],
            dtype="float32",
        )
        for language in languages
    }
    rows = []
    for language in languages:
        pair = pooled[ENGLISH], pooled[language]
        own, centred = _by_layer(*pair), _by_layer(*map(_centred, pair))
        rows.append({"language": language, "accuracy": own["accuracy"].mean(), "best_accuracy": own["accuracy"].max(),
                     "centred_accuracy": centred["accuracy"].mean(),
                     "aligned_cosine": own["aligned_cosine"].mean()})  # fmt: skip
    return pd.DataFrame(rows)


def _by_layer(english: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    layers = range(english.shape[1])
    return pd.DataFrame([retrieval_figures(english[:, layer], other[:, layer]) for layer in layers])


def _centred(pooled: np.ndarray) -> np.ndarray:
    """Without the mean of its language, which tells the language and not the sentence."""
    return pooled - pooled.mean(axis=0)
