"""Any sequence-classification checkpoint as a toxicity scorer, from the Hugging Face Hub or a local folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import check_language
from polydetox.core.paths import HUB_ID, expanded
from polydetox.scoring.base import SEVENTEEN, Score, Scorer

MAX_TOKENS = 512
_TOKENS_A_BATCH = {"cpu": 2_048, "cuda": 32_768}
LANGUAGES_OF = "?languages="  # what precedes the languages in a checkpoint's name


@dataclass(frozen=True)
class Checkpoint:
    """What has to be known of a checkpoint; of ``labels``, tried in order in any case, the first is toxicity.

    ``activation``: ``sigmoid`` for labels that can hold together, else ``softmax``; None as its configuration says.
    """

    source: str
    languages: frozenset[str]
    labels: tuple[str, ...] = ("toxicity", "toxic", "LABEL_1")
    activation: Literal["sigmoid", "softmax"] | None = None
    revision: str | None = None


# Languages are those that the model card says it was trained for, as far as they are among the paper's. A revision is a
# commit that has the final weights; where none is given, it is the newest, and the commit that was loaded is in the
# cache's key and in every manifest. Either can be set by hand: `textdetox-xlmr-large@<commit>`.
READY: dict[str, Checkpoint] = {
    # Detoxify's multilingual model (Hanu and Unitary 2020), XLM-R base.
    "detoxify-multilingual": Checkpoint(
        "unitary/multilingual-toxic-xlm-roberta", frozenset({"en", "es", "fr", "it", "pt", "ru"}),
        activation="sigmoid", revision="19f5c53459ec9679c675aeead38cab87cf588944",
    ),
    # XLM-R large, from the TextDetox shared task (Dementieva et al. 2025).
    "textdetox-xlmr-large": Checkpoint(
        "textdetox/xlmr-large-toxicity-classifier-v2",
        frozenset({"ar", "de", "en", "es", "fr", "hi", "it", "ja", "ru", "zh"}),
    ),
    # Trained in part on Perspective's own published scores, with its attributes as labels.
    "toxicity-lens": Checkpoint("abacusai/Toxicity-Lens", SEVENTEEN, ("TOXICITY",), "sigmoid"),
    # A small one: DistilBERT, trained on Jigsaw's comments.
    "distilbert-toxicity": Checkpoint(
        "citizenlab/distilbert-base-multilingual-cased-toxicity",
        frozenset({"de", "en", "es", "fr", "it", "nl", "pl", "pt"}),
        revision="b9f9177a7b8da0154817fe02cb7d3da511104838",
    ),
}  # fmt: skip


def parse_source(text: str) -> Checkpoint:
    """A checkpoint named ``owner/name`` or as a folder: ``owner/name@revision#label?languages=en,de``.

    The languages are those that it was trained for, which its model card says and nothing else here could know.
    """
    name, _, given = text.partition(LANGUAGES_OF)
    source, _, label = name.partition("#")
    revision = ""
    if not expanded(source).is_dir():
        source, _, revision = source.partition("@")
    if not source:
        raise UserError("scorer 'huggingface:' needs a Hub id or a folder after the colon, as huggingface:owner/name")
    if not expanded(source).is_dir() and not HUB_ID.fullmatch(source):
        raise UserError(f"scorer 'huggingface:{text}': {source!r} is no folder, and no Hub id (owner/name)")
    languages = frozenset(check_language(code.strip()) for code in given.split(",") if code.strip())
    if not languages:
        raise UserError(
            f"scorer 'huggingface:{text}': for which languages was it trained? Name them: "
            f"huggingface:{name}{LANGUAGES_OF}en,de"
        )
    return Checkpoint(source, languages, (label,) if label else Checkpoint.labels, revision=revision or None)


class HuggingFaceScorer(Scorer):
    """The probability that a sequence-classification model gives to toxicity. Loaded when first needed.

    Runs in bfloat16 or float16 on a GPU, in float32 on the CPU. Texts longer than 512 tokens are cut.
    """

    def __init__(self, scorer_id: str, checkpoint: Checkpoint):
        self.id, self.languages, self.checkpoint = scorer_id, checkpoint.languages, checkpoint
        folder = expanded(checkpoint.source)
        self._folder = folder if folder.is_dir() else None

    @cached_property
    def revision(self) -> str:  # type: ignore[override]
        """The commit on the Hub, or the hash of a folder's weights; and the label."""
        if self._folder is None:
            return f"{self._commit}-{self._label}"
        kinds = ("config.json", "*.safetensors", "*.bin", "token*")
        hashes = [file_sha256(file) for kind in kinds for file in sorted(self._folder.glob(kind)) if file.is_file()]
        return f"{hashlib.sha256(''.join(hashes).encode()).hexdigest()[:12]}-{self._label}"

    @cached_property
    def _commit(self) -> str | None:
        """The commit on the Hub that everything is loaded from; None for a folder."""
        from huggingface_hub import hf_hub_download

        if self._folder is not None:
            return None
        file = self._load(hf_hub_download, filename="config.json", revision=self.checkpoint.revision)
        return Path(file).parent.name  # a snapshot's folder is named by its commit

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._load(AutoConfig.from_pretrained, revision=self._commit)

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
    def _classifier(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

        dtype, device = torch.float32, "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda":
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        model = self._load(AutoModelForSequenceClassification.from_pretrained, revision=self._commit, dtype=dtype)
        tokenizer = self._load(AutoTokenizer.from_pretrained, revision=self._commit)
        several = self._config.problem_type == "multi_label_classification" or len(self._config.id2label) == 1
        function = self.checkpoint.activation or ("sigmoid" if several else "softmax")
        options: dict[str, Any] = {"device": device, "function_to_apply": function, "top_k": None}
        return pipeline("text-classification", model=model, tokenizer=tokenizer, **options)

    def _load(self, loader: Callable[..., Any], **options: Any) -> Any:
        """What ``loader`` gives for the checkpoint; what keeps it from it is a ``UserError``."""
        try:
            return loader(str(self._folder or self.checkpoint.source), **options)
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

        classifier, budget = self._classifier, _TOKENS_A_BATCH[self._classifier.device.type]
        # Tokenizers without a limit of their own give an astronomic one; RoBERTa keeps two positions for itself.
        positions = getattr(self._config, "max_position_embeddings", MAX_TOKENS + 2) - 2
        cut = {"truncation": True, "max_length": min(MAX_TOKENS, positions, classifier.tokenizer.model_max_length)}
        lengths = [len(ids) for ids in classifier.tokenizer(list(texts), **cut)["input_ids"]]
        # The longest first: if a batch does not fit into memory, that shows at once.
        waiting = sorted(range(len(texts)), key=lambda index: -lengths[index])
        while waiting:
            size = max(1, budget // max(1, lengths[waiting[0]]))
            try:
                answers = classifier([texts[index] for index in waiting[:size]], batch_size=size, **cut)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                torch.cuda.empty_cache()
                budget //= 2
                continue
            scores = [next(one["score"] for one in labels if one["label"] == self._label) for labels in answers]
            yield [(index, Score(score)) for index, score in zip(waiting, scores, strict=False)]
            waiting = waiting[size:]
