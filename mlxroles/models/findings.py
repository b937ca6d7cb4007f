"""What a rule of `models.config` reads, and where it notes what it found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxroles.models.implementation import Implementation
from mlxroles.text import safe_text


class LengthLimit(NamedTuple):
    """Prompts longer than ``tokens`` are computed otherwise than the config says."""

    tokens: int
    reason: str


@dataclass(frozen=True)
class Reading:
    """A config beside the implementation that would load it."""

    text: Mapping[str, Any]
    """Keys of the language model: ``text_config`` in multimodal models, else the whole config."""
    whole: Mapping[str, Any]
    served: Implementation
    weight_names: frozenset[str]

    @property
    def model_type(self) -> str:
        """Model type of the language model."""
        return str(self.text.get("model_type") or self.whole.get("model_type"))

    @property
    def layer_types(self) -> list[str]:
        """Kind of every layer; empty where the config does not say."""
        kinds = self.text.get("layer_types")
        return [str(kind) for kind in kinds] if isinstance(kinds, list) else []

    @property
    def n_layers(self) -> int | None:
        """Number of layers, where the config says."""
        for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
            if isinstance(self.text.get(key), int):
                return self.text[key]
        return None


@dataclass
class Findings:
    """Notes of the rules; the only thing that they change."""

    overrides: dict[str, Any] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    limits: list[LengthLimit] = field(default_factory=list)
    rope: dict[str, Any] = field(default_factory=dict)
    """Settings for `rope_layers.correct`, which no key of the module can carry."""
    explained: set[str] = field(default_factory=set)
    """Keys that a rule has dealt with, so that they are not reported as unread."""

    def repair(self, key: str, value: object, reason: str) -> None:
        """Overrides a key and says why."""
        self.overrides[key] = value
        self.repairs.append(f"{key} = {shown(value)}: {reason}")

    def value(self, reading: Reading, key: str) -> object:
        """The value that mlx_lm will see, None if it is absent."""
        return self.overrides.get(key, reading.text.get(key))


def shown(value: object) -> str:
    """A config value in a message: on one line, cut after 80 characters."""
    return safe_text(repr(value), limit=80)
