"""Was the config understood? What mlx_lm would silently get wrong, found before anything is loaded.

Each rule compares what a config asks for with what the mlx_lm module for it declares and reads:
it repairs (an override for ``load_model``), limits the prompt length, warns or refuses, always by
the name of the key. Not here: whether the loaded model computes what it claims; `models.check`
measures that.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxroles.backend import nn
from mlxroles.errors import ModelError
from mlxroles.models import config_keys, config_rope, config_shape, reference, rope_layers
from mlxroles.models.findings import Findings, LengthLimit, Reading, shown
from mlxroles.models.implementation import implementation, nests
from mlxroles.models.weight_names import TRANSLATIONS, renaming

RULES: tuple[Callable[[Reading, Findings], None], ...] = (
    config_shape.aliases,
    config_rope.rope,
    reference.absent,
    config_shape.layer_pattern,
    config_shape.window,
    config_shape.ties,
    config_keys.defects,
    config_keys.activation,
    config_keys.unread,
    config_shape.missing,
)
"""In this order: later rules see the overrides of earlier ones."""


@dataclass(frozen=True)
class Understanding:
    """What has to be changed, said or refused so that mlx_lm computes what the config says."""

    module: str
    """Name of the mlx_lm module that serves the config; empty if there is none."""
    overrides: Mapping[str, Any]
    """To be passed as ``load_model(..., model_config=overrides)``."""
    repairs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    limits: tuple[LengthLimit, ...] = ()
    rope: Mapping[str, Any] = field(default_factory=dict)
    """Rope settings that `model_classes` applies after the model is built."""

    @property
    def ignored_window(self) -> int | None:
        """Longest prompt, in tokens, for which mlx_lm computes what the config says, if limited."""
        return min((limit.tokens for limit in self.limits), default=None)


def understand(config: Mapping[str, Any], weight_names: Collection[str] = ()) -> Understanding:
    """Compares a model folder's config with the mlx_lm module that would load it.

    Args:
        config: the parsed config.json.
        weight_names: names of the stored weights; without them, rules that need them are silent.
    """
    if config.get("model_file"):
        told = f"the model brings its own code ({shown(config['model_file'])}): config not checked"
        return Understanding("", {}, warnings=(told,))
    try:
        served = implementation(config)
    except ModelError as error:
        return Understanding("", {}, refusals=(str(error),))
    nested = nests(served, config)
    text = dict(config["text_config"]) if nested else dict(config)
    reading = Reading(text, dict(config), served, frozenset(weight_names))
    findings = Findings()
    for rule in RULES:
        rule(reading, findings)
    overrides = findings.overrides
    if nested:
        overrides = {"text_config": {**text, **overrides}} if overrides else {}
        overrides |= _outer_vocabulary(reading, findings)
    if renaming(served.name, weight_names):
        findings.repairs.append(f"weight names are translated to those of mlx_lm's {served.name}")
    return Understanding(
        served.name,
        overrides,
        tuple(findings.repairs),
        tuple(findings.warnings),
        tuple(findings.refusals),
        tuple(findings.limits),
        findings.rope,
    )


def _outer_vocabulary(reading: Reading, found: Findings) -> dict[str, Any]:
    """The vocabulary of the language model where a multimodal wrapper would put in its own."""
    declared = inspect.signature(reading.served.args).parameters.get("vocab_size")
    size = reading.text.get("vocab_size")
    if declared is None or size is None or "vocab_size" in reading.whole:
        return {}
    if declared.default == size:
        return {}
    reason = f"mlx_lm would have used {shown(declared.default)}"
    found.repairs.append(f"vocab_size = {shown(size)}: {reason}")
    return {"vocab_size": size}


def model_classes(
    config: Mapping[str, Any], understanding: Understanding
) -> Callable[[dict[str, Any]], tuple[type[nn.Module], type]]:
    """The ``get_model_classes`` callable for mlx_lm's ``load_model``.

    The classes are mlx_lm's own, except where something must happen that no override can express:
    translating weight names before the module's ``sanitize``, or correcting the rope layers.

    Raises:
        ModelError: the config was refused.
    """
    if understanding.refusals:
        raise ModelError("; ".join(understanding.refusals))
    served = implementation(config)
    if served.name not in TRANSLATIONS and not understanding.rope:
        return lambda config: (served.model, served.args)

    base: Any = served.model

    def __init__(self: nn.Module, args: object) -> None:
        base.__init__(self, args)
        rope_layers.correct(self, understanding.rope)

    def sanitize(self: nn.Module, weights: dict[str, Any]) -> dict[str, Any]:
        translate = renaming(served.name, weights)
        weights = translate(weights) if translate else weights
        own = getattr(base, "sanitize", None)
        return own(self, weights) if own else weights

    body = {"__init__": __init__, "sanitize": sanitize, "__module__": served.model.__module__}
    repaired = type(served.model.__name__, (base,), body)
    return lambda config: (repaired, served.args)
