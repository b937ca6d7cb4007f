"""What a bench runs on: one or two models, and random prompts that both of them know."""

from dataclasses import dataclass

import numpy as np

from mlxroles.backend import mx
from mlxroles.errors import PairError
from mlxroles.forward import Network
from mlxroles.models.model import Model

RECIPIENT, DONOR = 0, 1
"""The two sides of a patch: what runs, and where the activations come from."""


@dataclass(frozen=True, eq=False)
class Ground:
    """The models and the length of the prompts.

    Raises:
        PairError: two models that no patch can go between.
    """

    recipient: Model
    donor: Model
    """The recipient itself where there is one model: its donor runs are of another prompt."""
    tokens: int
    """Length of a prompt where a work does not say otherwise."""

    def __post_init__(self) -> None:
        for what, own, other in (
            ("a vocabulary of", self.recipient.vocab, self.donor.vocab),
            ("layers:", self.recipient.n_layers, self.donor.n_layers),
            ("a stream of width", self.recipient.d_model, self.donor.d_model),
        ):
            if own != other:
                raise PairError(
                    f"the models do not fit together: {self.recipient.name} has {what} {own}, "
                    f"{self.donor.name} {other}; a patch needs two models of one shape"
                )

    @property
    def alone(self) -> bool:
        """Whether there is one model only."""
        return self.recipient is self.donor

    @property
    def n_layers(self) -> int:
        """Blocks of each model."""
        return self.recipient.n_layers

    @property
    def vocab(self) -> int:
        """Number of token ids that both models know."""
        return min(_vocab(self.recipient), _vocab(self.donor))

    @property
    def longest(self) -> int | None:
        """Longest prompt that both models run as they were made; None without a limit."""
        limits = [n for m in (self.recipient, self.donor) for n in (m.longest, m.table_length)]
        return min((n for n in limits if n is not None), default=None)

    def fit(self, length: int) -> int:
        """The length, or the longest possible where that is less."""
        return length if self.longest is None else min(length, self.longest)

    def network(self, side: int) -> Network:
        """The network of a side."""
        return (self.recipient if side == RECIPIENT else self.donor).network

    def prompts(self, count: int, length: int, side: int = RECIPIENT) -> mx.array:
        """Random token ids [prompt, position], always the same; both sides of a pair share them."""
        generator = np.random.default_rng([count, length, side if self.alone else RECIPIENT])
        return mx.array(generator.integers(0, self.vocab, (count, length)))


def _vocab(model: Model) -> int:
    text = model.config.get("text_config")
    told = (text if isinstance(text, dict) else model.config).get("vocab_size")
    return min(model.vocab, told) if isinstance(told, int) and told > 0 else model.vocab
