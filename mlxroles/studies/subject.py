"""The models that a study is about: found on disk, compared, hashed; loaded only when computing.

Everything a plan and a manifest need is read from the folders' small files, so that a wrong
pairing is refused and a dry run answered without touching the weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlxroles.backend import memory, mx, on_gpu
from mlxroles.engine.pressure import bound_cache, relief
from mlxroles.errors import ModelError, PairError, PromptError
from mlxroles.events import Emit, Note, Stage
from mlxroles.machine import memory as machine
from mlxroles.models import integrity, sharded
from mlxroles.models.load import load
from mlxroles.models.model import LEARNED_POSITIONS, Model
from mlxroles.models.tokenizer import load_tokenizer
from mlxroles.models.vetted import vet
from mlxroles.pairs import Pair, resolve
from mlxroles.prompts import same_tokenizer, tokenizer_digest
from mlxroles.ranks import Ranks
from mlxroles.snapshots import read_config, weight_files
from mlxroles.text import format_bytes, safe_text

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim", "dim")
HEAD_KEYS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KEY_HEAD_KEYS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
SHAPE = {"layers": LAYER_KEYS, "d_model": WIDTH_KEYS, "vocabulary": ("vocab_size",)}
"""Sizes that two models of a pair must share, and the config's names for them."""


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _size(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    text = text_config(config)
    return next((int(text[k]) for k in keys if isinstance(text.get(k), int)), None)


@dataclass(frozen=True)
class Side:
    """One model of a study, not loaded."""

    name: str
    """``base``, ``instruct`` or ``model``."""
    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def find(cls, name: str, ref: str) -> "Side":
        """The folder behind a reference.

        Raises:
            PairError, ModelError: it is not there or not a model folder, with what to do.
        """
        folder = resolve(ref)
        return cls(name, folder, read_config(folder))

    @property
    def n_layers(self) -> int:
        """Number of blocks, as the config says.

        Raises:
            ModelError: the config does not say.
        """
        count = _size(self.config, LAYER_KEYS)
        if not count:
            raise ModelError(f"{self.folder}/config.json names no number of layers")
        return count

    @property
    def vocab(self) -> int:
        """Number of token ids, as the config says; 2**31 - 1 where it does not."""
        return _size(self.config, ("vocab_size",)) or 2**31 - 1

    @property
    def context(self) -> int | None:
        """Longest prompt that the model was made for, where the config says."""
        return _size(self.config, CONTEXT_KEYS)

    @property
    def n_bytes(self) -> int:
        """Size of the weights on disk, in bytes."""
        return sum(f.stat().st_size for f in weight_files(self.folder))

    def held_bytes(self, parts: int) -> int:
        """Bytes of the weights that one process holds where several hold the model."""
        return self.n_bytes if parts == 1 else sharded.held_bytes(self.folder, parts)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, or None where it has none."""
        return load_tokenizer(self.folder)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What identifies the model: the hash of its files, its type and quantisation."""
        hashes = integrity.hashes(self.folder)
        return {
            "sha256": integrity.combined(f"{n} {h}" for n, h in hashes.items()),
            "model_type": self.config.get("model_type"),
            "quantization": self.config.get("quantization"),
        }


@dataclass
class Subject:
    """The models of a study and how many of them may be in memory at once."""

    sides: Mapping[str, Side]
    display: str
    pair: str | None = None
    d1_group: str | None = None
    template: str = "same"
    """As in ``Pair.template``."""
    resident: int = 2
    options: Mapping[str, Any] = field(default_factory=dict)
    """Passed on to ``load``."""
    ranks: Ranks | None = None
    """Processes that hold each model together; None where this one holds all of it."""
    on_load: Callable[[str], None] = lambda text: None
    """Told in words before a model is loaded."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results should know about the models, one line each."""
    _loaded: dict[str, Model] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranks is not None:
            for side in self.sides.values():
                sharded.check(side.config, self.ranks.size)
            relief.steady = True
            self.notes.append(f"each model is divided over {self.ranks.size} processes")

    @property
    def parts(self) -> int:
        """Number of processes over which each model is divided."""
        return 1 if self.ranks is None else self.ranks.size

    @classmethod
    def of_pair(cls, pair: Pair, *, only: str | None = None, **fields: Any) -> "Subject":
        """Base and instruct of a pair, checked to fit together; or ``only`` one of them.

        Raises:
            PairError: sizes or tokenizers differ, with both values.
        """
        names = ("base", "instruct") if only is None else (only,)
        sides = {name: Side.find(name, pair.ref(name)) for name in names}
        named: dict[str, Any] = {"pair": pair.name, "d1_group": pair.d1_group}
        named |= {"template": pair.template} | fields
        subject = cls(sides, pair.display or pair.name, **named)
        if only is None:
            subject._check_sizes()
        return subject

    @classmethod
    def of_model(cls, ref: str, **fields: Any) -> "Subject":
        """A single model, under the name ``model``."""
        side = Side.find("model", ref)
        return cls({"model": side}, side.folder.name, **fields)

    def _check_sizes(self) -> None:
        for what, keys in SHAPE.items():
            self.check_same(what, keys)
        for key in ("model_type", "quantization"):
            found = [self.sides[name].config.get(key) for name in ("base", "instruct")]
            if found[0] != found[1]:
                self.notes.append(
                    f"the models differ in {key}: base has {_brief(found[0])}, instruct "
                    f"{_brief(found[1])}; what a patch shows may come from that"
                )

    def check_same(self, what: str, keys: tuple[str, ...]) -> None:
        """Refuses models whose configs give a size differently.

        Raises:
            PairError: with both values.
        """
        base, instruct = (_size(self.sides[n].config, keys) for n in ("base", "instruct"))
        if base != instruct:
            raise PairError(
                f"the models do not fit together: base has {what} {base}, instruct {instruct}; "
                "a patch needs two models of one shape"
            )

    def check_length(
        self,
        n_tokens: int,
        what: str,
        note: Callable[[str], None] | None = None,
        *,
        by_blocks: bool = False,
    ) -> None:
        """Refuses what cannot be computed, and says what is longer than the models know.

        Raises:
            PromptError: with the length and the limit.
        """
        known = [side.context for side in self.sides.values() if side.context]
        context = min(known, default=None)
        if context is not None and n_tokens > context:
            types = {side.config.get("model_type") for side in self.sides.values()}
            if types & set(LEARNED_POSITIONS):
                raise PromptError(
                    f"{what} has {n_tokens} tokens; the model has {context} positions, shorten it"
                )
            if note is not None:
                note(
                    f"{what} has {n_tokens} tokens, more than the {context} positions that the "
                    "models were trained for: what they say there means little"
                )
        limit = memory_limit()
        needed = 4 * max(attention_heads(self), 1) * n_tokens**2
        if needed > limit and not on_gpu() and not by_blocks:
            raise PromptError(
                f"{what} has {n_tokens} tokens: the attention of one layer would take "
                f"{format_bytes(needed)} of the {format_bytes(limit)} here; shorten it"
            )

    def check_weights(self) -> None:
        """Refuses damaged weight files before anything is written; they are read once per hash.

        Raises:
            ModelError: naming the file, the tensor and what was found.
        """
        for side in self.sides.values():
            integrity.scan(side.folder)

    @property
    def n_layers(self) -> int:
        """Number of blocks of each model."""
        return next(iter(self.sides.values())).n_layers

    @property
    def vocab(self) -> int:
        """Number of token ids that every model of the study knows."""
        return min(side.vocab for side in self.sides.values())

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that prompts are read with: the instruct model's, or None.

        Raises:
            PairError: the two models number tokens differently, so the same ids would be
                different texts.
        """
        ordered = [self.sides[n] for n in ("instruct", "base", "model") if n in self.sides]
        found = [side.tokenizer for side in ordered if side.tokenizer is not None]
        if len(found) == 1 and len(ordered) == 2:
            without = next(side for side in ordered if side.tokenizer is None)
            self.notes.append(
                f"{without.name} has no tokenizer files, so nothing shows that its ids mean the "
                "same: the other model's tokenizer is used for both"
            )
        if len(found) == 2:
            differences = same_tokenizer(found[0], found[1])
            by_template = [d for d in differences if d.startswith("chat template")]
            if differences != by_template:
                raise PairError(
                    f"instruct and base have different tokenizers ({'; '.join(differences)}); "
                    "the same ids would be different texts"
                )
            if by_template and self.template != "instruct":
                raise PairError(
                    f"instruct and base have different templates ({by_template[0]}); pass "
                    "--template instruct to render conversations with the instruct model's"
                )
        return found[0] if found else None

    def tokenizer_identity(self) -> dict[str, Any] | None:
        """Digests of vocabulary and chat template, or None without a tokenizer."""
        return None if self.tokenizer is None else tokenizer_digest(self.tokenizer)

    def note_origin(self, name: str, model: Mapping[str, Any] | None, *sides: str) -> None:
        """Notes where a vector was taken from another model than one that it acts on.

        Args:
            name: The vector.
            model: What identifies the model that it was taken from; None where that is unknown.
            sides: On whom it acts; all without it.
        """
        taken_from = None if model is None else model.get("sha256")
        for side in sides or self.sides:
            if taken_from is None or taken_from == self.sides[side].identity["sha256"]:
                continue
            text = f"{side}: vector '{safe_text(name, limit=80)}' was taken from another model"
            if text not in self.notes:
                self.notes.append(text)

    def tell(self, emit: Emit) -> None:
        """Has a run's events told of loading, and of batches that had to become smaller."""
        self.on_load = lambda text: emit(Stage(text))
        relief.begin(lambda text: emit(Note(text)))

    def model(self, side: str) -> Model:
        """The loaded model of a side; with ``resident=1`` the other one is given up first."""
        if side not in self._loaded:
            if self.resident == 1:
                self.release()
            self.on_load(f"loading {side} ({self.sides[side].folder.name})")
            bound_cache()
            place = self.sides[side]
            self._loaded[side] = loaded = load(place.folder, ranks=self.ranks, **self.options)
            for text in vet(loaded, place.identity["sha256"], place.n_bytes):
                if f"{side}: {text}" not in self.notes:
                    self.notes.append(f"{side}: {text}")
                    self.on_load(self.notes[-1])
        return self._loaded[side]

    def release(self) -> None:
        """Gives up the loaded models; they are loaded again when they are asked for."""
        self._loaded.clear()
        mx.clear_cache()


def attention_heads(subject: Subject) -> int:
    """Query heads per layer, as the config says; 0 where it does not."""
    config = next(iter(subject.sides.values())).config
    return _size(config, HEAD_KEYS) or 0


def key_heads(subject: Subject) -> int:
    """Key-value heads per layer, as the config says; all heads where it does not."""
    config = next(iter(subject.sides.values())).config
    return _size(config, KEY_HEAD_KEYS) or attention_heads(subject)


def stream_width(subject: Subject) -> int:
    """Width of the residual stream, as the config says; 4096 where it does not."""
    config = next(iter(subject.sides.values())).config
    return _size(config, WIDTH_KEYS) or 4096


def memory_limit() -> int:
    """Bytes that models and arrays may take: what the device recommends, else the machine's."""
    return memory().limit or machine.total()


def fitting(subject: Subject) -> int:
    """How many of the study's models fit in memory at once: 2, or 1 where both are too large."""
    total = sum(side.held_bytes(subject.parts) for side in subject.sides.values())
    found = 1 if total > 0.7 * memory_limit() else 2
    return found if subject.ranks is None else subject.ranks.least(found)


def _brief(value: object) -> str:
    if isinstance(value, Mapping):
        value = f"{value.get('bits', '?')} bits in groups of {value.get('group_size', '?')}"
    return "none" if value is None else str(value)
