"""What an mlx_lm model module declares and reads of a config.

mlx_lm builds a model's arguments from the keys it declares and drops all others without a word,
so what a module declares, and whether its source ever uses that, decides which part of a config
was understood. Everything here is read off the installed mlx_lm; nothing is loaded.
"""

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING

from mlxroles.backend import nn
from mlxroles.errors import ModelError
from mlxroles.text import safe_text

PACKAGE = "mlx_lm.models."
_PARTS = "activations base bitlinear_layers cache gated_delta mla pipeline rope_utils ssm"
SHARED = frozenset([*_PARTS.split(), "switch_layers"])
"""Modules of mlx_lm that hold parts, not models."""

_TEXT_ARGS = re.compile(
    r"(\w+(?:\.ModelArgs)?)\.from_dict\(\s*(?:args|self|config)\.text_config\s*\)"
)
_MERGES_TEXT = 'params["text_config"]'


@dataclass(frozen=True)
class Implementation:
    """One model module of mlx_lm, seen from the config's side."""

    name: str
    """Module name, e.g. ``llama`` for a config whose model type is ``mistral``."""
    model: type[nn.Module]
    args: type
    """The dataclass that load_model fills."""
    text_args: type
    """The dataclass of the language model; another one than ``args`` in multimodal wrappers."""
    defaults: Mapping[str, Any]
    """Keys of ``text_args`` with their defaults; ``inspect.Parameter.empty`` where required."""
    source: str
    """Source text of every module that takes part."""

    def declares(self, key: str) -> bool:
        """Whether the key reaches the module at all."""
        return key in self.defaults

    def requires(self, key: str) -> bool:
        """Whether the module cannot be built without the key."""
        return self.defaults.get(key) is inspect.Parameter.empty

    def reads(self, key: str) -> bool:
        """Whether the key is declared and used, not only kept for the record."""
        return self.declares(key) and self._mentions(key)

    def uses(self, name: str) -> bool:
        """Whether the name occurs in the source as a word."""
        return re.search(rf"(?<![\w.]){re.escape(name)}\b", self.source) is not None

    def _mentions(self, key: str) -> bool:
        word = re.escape(key)
        used = len(re.findall(rf"\b{word}\b", self.source))
        declared = len(re.findall(rf"^    {word}\s*:", self.source, flags=re.MULTILINE))
        return used > declared


def module_name(config: Mapping[str, Any]) -> str:
    """Name of the mlx_lm module that serves this config.

    Raises:
        ModelError: the config names no model type.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelError("config.json has no model_type: this is not a folder of a language model")
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else [architectures]
    for architecture in named:
        if (
            isinstance(architecture, str)
            and (model_type, architecture) in MODEL_ARCHITECTURE_REMAPPING
        ):
            return MODEL_ARCHITECTURE_REMAPPING[model_type, architecture]
    return MODEL_REMAPPING.get(model_type, model_type)


def implementation(config: Mapping[str, Any]) -> Implementation:
    """The mlx_lm module for this config.

    Raises:
        ModelError: mlx_lm has no module for the model type.
    """
    name = module_name(config)
    text = config.get("text_config")
    return _implementation(name, text.get("model_type") if isinstance(text, Mapping) else None)


@cache
def _implementation(name: str, text_type: str | None) -> Implementation:
    if name in SHARED or not name.replace("-", "_").isidentifier():
        raise ModelError(f"mlx_lm has no model module {safe_text(name)!r}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = importlib.import_module(PACKAGE + name)
    except SystemExit as error:  # olmo, without a package that it does not use
        raise ModelError(
            f"mlx_lm's module {name!r} ends the program when it is imported"
        ) from error
    except ModuleNotFoundError as error:
        if error.name != PACKAGE + name:
            raise ModelError(f"mlx_lm's module {name!r} needs {error.name!r}") from error
        message = f"mlx_lm has no model module {safe_text(name)!r}: model type not supported"
        raise ModelError(message) from error
    text_args = _text_args(module, text_type)
    parameters = inspect.signature(text_args).parameters
    return Implementation(
        name=name,
        model=module.Model,
        args=module.ModelArgs,
        text_args=text_args,
        defaults={key: parameter.default for key, parameter in parameters.items()},
        source="\n".join(inspect.getsource(m) for m in _taking_part(module, text_args)),
    )


def nests(implementation: Implementation, config: Mapping[str, Any]) -> bool:
    """Whether the language model's keys stand under ``text_config``."""
    if not isinstance(config.get("text_config"), Mapping):
        return False
    declared = "text_config" in inspect.signature(implementation.args).parameters
    return declared or _MERGES_TEXT in implementation.source


def _text_args(module: ModuleType, text_type: str | None) -> type:
    """The dataclass of the language model inside a multimodal wrapper, else ``ModelArgs``."""
    if "text_config" not in inspect.signature(module.ModelArgs).parameters:
        return module.ModelArgs
    for origin in _origins(module):
        found = [_resolve(origin, name) for name in _TEXT_ARGS.findall(inspect.getsource(origin))]
        if found:
            served = [args for args in found if args.__module__ == PACKAGE + str(text_type)]
            return (served or found[::-1])[0]
    return module.ModelArgs


def _resolve(module: ModuleType, dotted: str) -> type:
    target: Any = module
    for part in dotted.split("."):
        target = getattr(target, part)
    return target


def _origins(module: ModuleType) -> list[ModuleType]:
    """The modules that define the model class and its bases."""
    names = dict.fromkeys(base.__module__ for base in module.Model.__mro__)
    return [importlib.import_module(n) for n in names if n.startswith(PACKAGE)]


def _taking_part(module: ModuleType, text_args: type) -> list[ModuleType]:
    """The module, those of its bases and arguments, and the model modules that these import."""
    found: dict[str, ModuleType] = {}
    waiting = [*_origins(module), importlib.import_module(text_args.__module__)]
    waiting += [importlib.import_module(base.__module__) for base in text_args.__mro__[1:-1]]
    while waiting:
        current = waiting.pop()
        short = current.__name__.removeprefix(PACKAGE)
        if current.__name__ in found or short in SHARED or PACKAGE not in current.__name__ + ".":
            continue
        found[current.__name__] = current
        for value in vars(current).values():
            origin = value.__name__ if isinstance(value, ModuleType) else None
            origin = value.__module__ if isinstance(value, type) else origin
            if origin is not None and origin.startswith(PACKAGE):
                waiting.append(importlib.import_module(origin))
    return list(found.values())
