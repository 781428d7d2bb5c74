"""Any sequence-classification checkpoint as a toxicity scorer, from the Hugging Face Hub or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import check_language
from polydetox.core.paths import expanded
from polydetox.scoring.base import SEVENTEEN, Score, Scorer

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 512
_TOKENS_A_BATCH = {"cpu": 2_048, "cuda": 32_768}


@dataclass(frozen=True)
class Checkpoint:
    """What has to be known of a checkpoint: where it is, which of its labels is toxicity, its languages.

    ``labels`` are tried in order, without regard to case. ``activation`` turns logits into probabilities: ``sigmoid``
    for labels that can hold together, ``softmax`` for labels that exclude each other, ``auto`` as the checkpoint's
    configuration says.
    """

    source: str
    labels: tuple[str, ...]
    languages: frozenset[str]
    activation: Literal["auto", "sigmoid", "softmax"] = "auto"
    revision: str | None = None


LANGUAGES_OF = "?languages="  # what precedes the languages in a checkpoint's name
_TOXIC_LABELS = ("toxicity", "toxic", "LABEL_1")

# Languages are those that the model card says it was trained for, as far as they are among the paper's. A revision is a
# commit that has the final weights; where none is given, it is the newest, and the commit that was loaded is in the
# cache's key and in every manifest. Either can be set by hand: `textdetox-xlmr-large@<commit>`.
READY: dict[str, Checkpoint] = {
    # Detoxify's multilingual model (Hanu and Unitary 2020), XLM-R base.
    "detoxify-multilingual": Checkpoint(
        "unitary/multilingual-toxic-xlm-roberta",
        _TOXIC_LABELS,
        frozenset(["en", "es", "fr", "it", "pt", "ru"]),
        "sigmoid",
        "19f5c53459ec9679c675aeead38cab87cf588944",
    ),
    # XLM-R large, from the TextDetox shared task (Dementieva et al. 2025).
    "textdetox-xlmr-large": Checkpoint(
        "textdetox/xlmr-large-toxicity-classifier-v2",
        _TOXIC_LABELS,
        frozenset(["ar", "de", "en", "es", "fr", "hi", "it", "ja", "ru", "zh"]),
    ),
    # Trained in part on Perspective's own published scores, with its attributes as labels.
    "toxicity-lens": Checkpoint("abacusai/Toxicity-Lens", ("TOXICITY",), SEVENTEEN, "sigmoid"),
    # A small one: DistilBERT, trained on Jigsaw's comments.
    "distilbert-toxicity": Checkpoint(
        "citizenlab/distilbert-base-multilingual-cased-toxicity",
        _TOXIC_LABELS,
        frozenset(["de", "en", "es", "fr", "it", "nl", "pl", "pt"]),
        revision="b9f9177a7b8da0154817fe02cb7d3da511104838",
    ),
}


def parse_source(text: str) -> Checkpoint:
    """A checkpoint named ``owner/name`` or as a folder: ``owner/name@revision#label?languages=en,de``.

    The revision is a commit or tag on the Hub, the label what it calls toxicity, where that is another name than usual.
    The languages are those that it was trained for, which its model card tells and nothing else here could know.
    """
    name, _, told = text.partition(LANGUAGES_OF)
    source, _, label = name.partition("#")
    revision = ""
    if not expanded(source).is_dir():
        source, _, revision = source.partition("@")
    if not source:
        raise UserError("scorer 'huggingface:' needs a Hub id or a folder after the colon, as huggingface:owner/name")
    languages = [check_language(code.strip()) for code in told.split(",") if code.strip()]
    if not languages:
        raise UserError(
            f"scorer 'huggingface:{text}': for which languages was it trained? Name them: "
            f"huggingface:{name}{LANGUAGES_OF}en,de"
        )
    return Checkpoint(source, (label,) if label else _TOXIC_LABELS, frozenset(languages), revision=revision or None)


class HuggingFaceScorer(Scorer):
    """The probability that a sequence-classification model gives to toxicity. Loaded when first needed.

    Runs in bfloat16 or float16 on a GPU, in float32 on the CPU. Texts longer than 512 tokens are cut.

    Args:
        scorer_id: the scorer's name.
        checkpoint: which model, label and languages.
        device: ``cuda`` or ``cpu``; by default the GPU where there is one.
    """

    threshold = 0.5

    def __init__(self, scorer_id: str, checkpoint: Checkpoint, device: str | None = None):
        self.id = scorer_id
        self.languages = checkpoint.languages
        self.checkpoint = checkpoint
        self._device = device

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        """The commit on the Hub, or the hash of a folder's weights; and the label."""
        folder = expanded(self.checkpoint.source)
        if folder.is_dir():
            kinds = ("config.json", "*.safetensors", "*.bin", "token*")
            files = [path for kind in kinds for path in sorted(folder.glob(kind)) if path.is_file()]
            hashes = "".join(map(file_sha256, files))
            return f"{hashlib.sha256(hashes.encode()).hexdigest()[:12]}-{self._label}"
        return f"{self._commit}-{self._label}"

    @cached_property
    def _commit(self) -> str | None:
        """The commit on the Hub that everything is loaded from; None for a folder."""
        from huggingface_hub import hf_hub_download

        if expanded(self.checkpoint.source).is_dir():
            return None
        wanted = self.checkpoint.revision
        file = self._explained(lambda: hf_hub_download(self.checkpoint.source, "config.json", revision=wanted))
        return Path(file).parent.name  # a snapshot's folder is named by its commit; transformers no longer tells it

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._from_pretrained(AutoConfig)

    @cached_property
    def _label(self) -> str:
        """The checkpoint's own name of its toxicity label."""
        names = {str(name).lower(): str(name) for name in self._config.id2label.values()}
        for label in self.checkpoint.labels:
            if label.lower() in names:
                return names[label.lower()]
        raise UserError(
            f"scorer {self.id!r}: {self.checkpoint.source} has no label {self.checkpoint.labels[0]!r}"
            f"{nearest(self.checkpoint.labels[0], names.values())} (write it as {self.checkpoint.source}#label)"
        )

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._from_pretrained(AutoTokenizer)

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification

        self._device = self._device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32
        if self._device == "cuda":
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return self._from_pretrained(AutoModelForSequenceClassification, dtype=dtype).to(self._device).eval()

    def _from_pretrained(self, kind: Any, **options: Any) -> Any:
        folder = expanded(self.checkpoint.source)
        source = str(folder) if folder.is_dir() else self.checkpoint.source
        return self._explained(lambda: kind.from_pretrained(source, revision=self._commit, **options))

    def _explained(self, load: Callable[[], Any]) -> Any:
        """What ``load`` gives; what keeps it from the checkpoint is a ``UserError``."""
        try:
            return load()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"scorer {self.id!r}: {self.checkpoint.source} cannot be loaded ({reason}); give a folder or a Hub id "
                "of a sequence-classification model that is reachable from here"
            ) from None

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        if not texts:
            return
        import torch

        model, tokenizer = self._model, self._tokenizer
        assert self._device is not None
        budget = _TOKENS_A_BATCH[self._device]
        encoded = tokenizer(list(texts), truncation=True, max_length=self._max_tokens())["input_ids"]
        # The longest first: if a batch does not fit into memory, that shows at once.
        waiting = sorted(range(len(texts)), key=lambda index: -len(encoded[index]))
        while waiting:
            size = max(1, budget // max(1, len(encoded[waiting[0]])))
            batch = waiting[:size]
            try:
                scores = self._probabilities(model, [encoded[index] for index in batch])
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                torch.cuda.empty_cache()
                budget //= 2
                continue
            waiting = waiting[size:]
            yield [(index, Score(score)) for index, score in zip(batch, scores, strict=True)]

    def _probabilities(self, model: torch.nn.Module, ids: list[list[int]]) -> list[float]:
        import torch

        padded = self._tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self._device)
        names = [str(self._config.id2label[position]) for position in range(len(self._config.id2label))]
        with torch.inference_mode():
            logits = model(**padded).logits.float()  # (batch, labels)
        probabilities = logits.sigmoid() if self._activation() == "sigmoid" else logits.softmax(dim=-1)
        return probabilities[:, names.index(self._label)].tolist()

    def _activation(self) -> str:
        if self.checkpoint.activation != "auto":
            return self.checkpoint.activation
        several = self._config.problem_type == "multi_label_classification"
        return "sigmoid" if several or len(self._config.id2label) == 1 else "softmax"

    def _max_tokens(self) -> int:
        # Tokenizers without a limit of their own give an astronomic one; RoBERTa keeps two positions for itself.
        positions = getattr(self._config, "max_position_embeddings", MAX_TOKENS + 2) - 2
        return min(MAX_TOKENS, positions, self._tokenizer.model_max_length)
