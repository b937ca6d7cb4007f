"""A prompt as a study runs it: token ids. No model is needed to read a stored run's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoded:
    """A prompt as token ids, the same for both models."""

    id: str
    ids: tuple[int, ...]
    digest: str
    """SHA-256 of the ids."""
    other: tuple[int, ...] = ()
    """Ids of the same number whose activations serve as a control."""
    category: str | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.ids)
