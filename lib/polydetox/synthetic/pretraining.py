"""Pretraining of the small models of the synthetic setting on a corpus whose alignment of languages is set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from polydetox.core.artifacts import atomic_folder, atomic_path
from polydetox.core.parameters import Settings
from polydetox.synthetic.phrasebook import Meaning, Phrasebook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ENGLISH = "en"
EQUALS = "="  # between a text and its translation
MIXED = "&"  # before a text of two languages: without it a text keeps to its own
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def documents(phrasebook: Phrasebook, settings: Settings, count: int, rng: np.random.Generator) -> list[str]:
    """Draw ``count`` rounds of the corpus.

    A round gives two texts, languages in turn. Without alignment they are one in English and one in the other
    language, in documents of their own. With probability ``alignment`` they are aligned: either a text and its
    translation in one document, or (with probability ``mixed_share``) two texts that take each phrase from one of the
    two languages, and say so by a mark. So every language has the same amount of text, whatever the alignment.

    The remarks of a text are all insults or all kindnesses, and most say their tone: what makes "insult" something that
    a model has a use for, and not only so many words.
    """
    others = [language for language in settings.languages if language != ENGLISH]
    found = []
    for number in range(count):
        pair = [ENGLISH, others[number % len(others)]]
        texts = [_text(phrasebook, settings, rng) for _ in pair]
        if rng.random() >= settings.alignment:
            found += [_plain(phrasebook, text, code) for text, code in zip(texts, pair, strict=True)]
        elif rng.random() < settings.mixed_share:
            found += [" ".join([MIXED, *(phrasebook.mixed(meaning, pair, rng) for meaning in text)]) for text in texts]
        else:
            order = pair if rng.random() < 0.5 else pair[::-1]
            found.append(f" {EQUALS} ".join(_plain(phrasebook, texts[0], code) for code in order))
    return found


def _text(phrasebook: Phrasebook, settings: Settings, rng: np.random.Generator) -> list[Meaning]:
    insult = bool(rng.random() < settings.insult_share)
    return [
        phrasebook.draw(rng, remark_share=settings.remark_share, insult=insult, tone_share=settings.tone_share)
        for _ in range(1 + int(rng.integers(settings.sentences_per_text)))
    ]


def _plain(phrasebook: Phrasebook, text: Sequence[Meaning], language: str) -> str:
    return " ".join(phrasebook.text(meaning, language) for meaning in text)


def example_documents(settings: Settings, count: int) -> list[str]:
    """The first documents of the corpus."""
    rng = np.random.default_rng([settings.seed, 0])
    return documents(Phrasebook.load(), settings, count, rng)[:count]


def make_tokenizer(phrasebook: Phrasebook, languages: Sequence[str]) -> PreTrainedTokenizerFast:
    """A vocabulary of whole words, with a beginning-of-sequence token before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = sorted(set().union(*(phrasebook.words[language] for language in languages)) | {EQUALS, MIXED})
    vocabulary = {word: number for number, word in enumerate([*SPECIALS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos = vocabulary["<bos>"]
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", bos)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def make_model(vocabulary: int, settings: Settings) -> PreTrainedModel:
    """A small Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(settings.seed)
    configuration = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=int(settings.hidden * 8 / 3 // 16 * 16),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // 32,
        max_position_embeddings=settings.block,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return LlamaForCausalLM(configuration)


def packed(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], block: int) -> np.ndarray:
    """Documents one after the other, each with its end, cut into rows of ``block`` tokens (rows, block)."""
    ids = tokenizer(list(texts))["input_ids"]
    stream = np.concatenate([[*row, tokenizer.eos_token_id] for row in ids])
    rows = len(stream) // block
    return stream[: rows * block].reshape(rows, block)


def pretrain(settings: Settings, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Pretrain one model and write ``folder/weights``; goes on from its last checkpoint after a stop.

    Returns the loss in nats by step, and the figures of the model and its corpus.
    """
    import torch

    phrasebook = Phrasebook.load()
    phrasebook.check_languages(settings.languages)
    tokenizer = make_tokenizer(phrasebook, settings.languages)
    model = make_model(len(tokenizer), settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    state = folder / "state.pt"
    losses: list[float] = []
    if state.is_file():
        stored = torch.load(state, weights_only=True)
        if stored["settings"] == _key(settings):
            model.load_state_dict(stored["model"])
            optimizer.load_state_dict(stored["optimizer"])
            schedule.load_state_dict(stored["schedule"])
            losses = stored["losses"]
    tokens = settings.batch_size * settings.block
    model.train()
    for step in tqdm(range(len(losses), settings.steps), initial=len(losses), total=settings.steps, desc="pretrain"):
        # Each step draws its own part of the corpus, so that a run that was stopped sees what it would have seen.
        rng = np.random.default_rng([settings.seed, step])
        texts = documents(phrasebook, settings, tokens // 16 + 8, rng)
        rows = packed(tokenizer, [texts[place] for place in rng.permutation(len(texts))], settings.block)
        batch = torch.from_numpy(rows[: settings.batch_size])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % settings.save_steps == 0 and step + 1 < settings.steps:
            with atomic_path(state) as temporary:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses,
                            "schedule": schedule.state_dict(), "settings": _key(settings)}, temporary)  # fmt: skip
    with atomic_folder(folder / "weights") as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    state.unlink(missing_ok=True)
    words = [phrasebook.words[language] - {".", ":"} for language in settings.languages]
    shared = {word for place, mine in enumerate(words) for other in words[place + 1 :] for word in mine & other}
    figures = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "vocabulary": len(tokenizer),
        "shared_words": len(shared) / len(set().union(*words)),
        "final_loss": float(np.mean(losses[-20:])),
        "tokens": settings.steps * tokens,
    }
    return pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses}), figures


def _key(settings: Settings) -> str:
    return settings.model_dump_json(exclude={"output_folder"})
