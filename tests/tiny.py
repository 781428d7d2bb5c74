"""Tiny models, made on the spot, and a checkout of their own for tests that run stages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
FAMILIES = ["gpt2", "bloom", "llama"]

TEXTS = [
    "The neighbours are loud again and nobody says a word about it.",
    "Der Nachbar ist heute wieder sehr laut und niemand sagt etwas dazu.",
    "La capital de Francia es una de las ciudades más grandes del mundo.",
    "今日はとても天気がいいので散歩に行きます。",
    "Сегодня хорошая погода, и мы идём гулять в парк.",
]


def tiny_tokenizer():
    """A byte-pair encoding with byte fallback and a beginning-of-sequence token, built like Gemma's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no merges across words
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # does nothing, as in Gemma's
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    # Byte tokens are ordinary tokens, as in Gemma's vocabulary; only the trainer had to be told of them.
    specification = json.loads(tokenizer.to_str())
    specification["added_tokens"] = [entry for entry in specification["added_tokens"] if entry["content"] in specials]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(specification)),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def tiny_model(family: str, vocabulary: int, seed: int = 0):
    """A two-layer random-weight model of one family."""
    import torch
    from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig

    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    configuration = {
        "gpt2": GPT2Config(vocab_size=vocabulary, n_positions=256, n_embd=32, n_layer=2, n_head=4, **tokens),
        "bloom": BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=2, n_head=4, **tokens),
        "llama": LlamaConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, **tokens),
    }[family]  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration)
    with torch.no_grad():
        # Freshly initialised models are nearly uniform; sharper ones make a wrong distribution visible.
        for weight in model.parameters():
            weight.mul_(4.0) if weight.dim() > 1 else None
    return model.eval()


TINY_PROFILE = {
    "title": "A tiny random-weight model",
    "models": ["tiny"],
    "languages": ["en", "de", "ja"],
    "prompts": {"source": "project", "limit": 4},
    "trim": {"words_per_language": 20, "expected_tokens": 100},
    "pairs": {"on-policy": {"n": 4, "margin": 0.0, "max_new_tokens": 6}},
    "variants": {"dpo": {"pairs": "on-policy"}, "dpo-lora": {"pairs": "on-policy", "dpo": {"method": "lora"}}},
    "dpo": {"max_steps": 4, "eval_steps": 2, "warmup_steps": 1, "learning_rate": 1e-3, "lora_rank": 4},
    "generate": {"n": 3, "max_new_tokens": 6},
    "evaluate": {"bootstrap_samples": 50},
    "agreement": {"scorers": ["embedded", "lexicon"], "bootstrap_samples": 50},
    "mechanism": {
        "probe": {"label_threshold": 0.2, "texts_per_language": 8, "epochs": 2},
        "value_vectors": {"top": 12, "promoted_tokens": 5, "new_tokens": 4},
        "activations": {"new_tokens": 4},
        "intervene": {
            "prompt_limit": 2,
            "offsets": [0.0, -2.0],
            "unit": "rms",
            "random_sets": 2,
            "new_tokens": 4,
            "bootstrap_samples": 50,
            "subtract": [0.0, 0.5],
            "directions": 2,
        },
        "residual": {"promoted_tokens": 5},
    },
    "capability": {
        "suites": {"everyday": {"tasks": ["everyday_en", "everyday_de"], "limit": 3}},
        "bootstrap_samples": 50,
    },
    "alignment": {"retrieval": {"sentences": "project", "limit": 6}, "transfer": {"bootstrap_samples": 50}},
}


def make_checkout(folder: Path, checkpoint: Path, **changes) -> Path:
    """A checkout with this one's notebooks, book, prompts and Snakefile, and one tiny model and profile."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("notebooks", "book", "lib", "profiles", "rules", "Snakefile", "_quarto.yml", "CITATION.cff"):
        (folder / name).symlink_to(CHECKOUT / name)
    for name in ("models", "profiles"):
        (folder / "params" / name).mkdir(parents=True)
    for name in ("prompts", "tasks"):
        shutil.copytree(CHECKOUT / "params" / name, folder / "params" / name)
    for name in ("data.yaml", "phrasebook.yaml", "model_card.md"):
        shutil.copy(CHECKOUT / "params" / name, folder / "params")
    model = {"title": "Tiny", "use": "path", "path": str(checkpoint), "licence": "none", "dtype": "float32"}
    (folder / "params/models/tiny.yaml").write_text(yaml.safe_dump(model))
    (folder / "params/profiles/tiny.yaml").write_text(yaml.safe_dump(TINY_PROFILE | changes))
    return folder


def environment(checkout: Path, **changes: str | None) -> dict[str, str]:
    """The variables of a process that runs in a checkout; ``changes`` to None are left out."""
    ours = {"POLYDETOX_RUNS": None, "POLYDETOX_ROOT": str(checkout), "HF_HUB_OFFLINE": "1"}
    variables = os.environ | ours | changes
    return {name: value for name, value in variables.items() if value is not None}


def polydetox(checkout: Path, *words: str, **changes: str | None) -> subprocess.CompletedProcess:
    """What the command `polydetox` does in a checkout, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "polydetox", *words], cwd=checkout, text=True, capture_output=True,
                          env=environment(checkout, **changes), timeout=600)  # fmt: skip


def called(checkout: Path, *words: str) -> subprocess.CompletedProcess:
    """The same in this process, which has imported torch and transformers already: for a plan, or what is refused."""
    from polydetox.cli import main
    from polydetox.core import paths

    with (
        tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, contextlib.chdir(checkout),
        mock.patch.dict(os.environ, environment(checkout), clear=True), contextlib.ExitStack() as after,
    ):  # fmt: skip
        after.callback(paths.root.cache_clear)
        paths.root.cache_clear()
        for number, file in ((1, out), (2, err)):  # what Snakemake prints
            kept = os.dup(number)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(words))
            out.flush(), err.flush()
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read())
    return subprocess.CompletedProcess(list(words), status, *printed)


def plan(checkout: Path, file: str, *targets: str, **changes) -> str:
    """What a plan of the tiny profile prints after changes to a file of parameters, which is put back."""
    path = checkout / "params" / file
    original = path.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(original) | changes))
    try:
        done = called(checkout, "run", "--profile", "tiny", "-n", *targets)
    finally:
        path.write_text(original)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
