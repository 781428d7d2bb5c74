"""What a stopped pretraining continues from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydetox.core.artifacts import atomic_path


class TrainingState:
    """The losses of a training so far, with all that a stopped one continues from, in one file.

    ``parts`` are the model, the optimizer and the schedule; a file of another ``key`` is not read.
    """

    def __init__(self, file: Path, key: str, **parts: Any):
        import torch

        self.file, self.key, self.parts = file, key, parts
        self.losses: list[float] = []
        stored: dict[str, Any] = torch.load(file, weights_only=True) if file.is_file() else {"key": None}
        if stored["key"] == key:
            self.losses = stored["losses"]
            for name, part in parts.items():
                part.load_state_dict(stored[name])

    def save(self) -> None:
        """Write the file, in place of the one before."""
        import torch

        states = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_path(self.file) as temporary:
            torch.save({"key": self.key, "losses": self.losses, **states}, temporary)
