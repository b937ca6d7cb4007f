"""From a name or folder to a ``Model``: found, understood, scanned, loaded."""

from pathlib import Path
from typing import Any

from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError
from mlxroles.models import integrity, sharded
from mlxroles.models.config import model_classes, understand
from mlxroles.models.dense_on_cpu import speed_up, widen_experts
from mlxroles.models.model import Model
from mlxroles.pairs import resolve
from mlxroles.ranks import Ranks
from mlxroles.snapshots import read_config, weight_files


def load(
    name: str | Path,
    *,
    allow_window_mismatch: bool = False,
    trust_remote_code: bool = False,
    scan: bool = True,
    ranks: Ranks | None = None,
) -> Model:
    """Loads any mlx_lm model from a local folder, the Hub's cache or the package.

    The config is compared with what mlx_lm reads of it: what can be repaired is (see
    ``Model.repairs``), what would give wrong numbers is refused.

    Args:
        name: Folder, Hub id that lies in the local cache, or ``tiny/base`` and the like.
        allow_window_mismatch: Accept prompts beyond a sliding window that mlx_lm ignores.
        trust_remote_code: Run a Python file that the model brings along.
        scan: Look for NaN, infinities and absurd magnitudes in the weights, once per file.
        ranks: Processes that hold the model together; this one reads its part of the weights.

    Raises:
        PairError: there is no such model on this machine.
        ModelError: it is incomplete, damaged or not understood.
    """

    def read() -> dict[str, Any]:
        options = {"allow_window_mismatch": allow_window_mismatch, "scan": scan}
        return _read(name, ranks, trust_remote_code=trust_remote_code, **options)

    return Model(**(read() if ranks is None else ranks.step(read)), ranks=ranks)


def _read(
    name: str | Path,
    ranks: Ranks | None,
    *,
    allow_window_mismatch: bool,
    trust_remote_code: bool,
    scan: bool,
) -> dict[str, Any]:
    """What a ``Model`` is made of; arguments and errors are those of ``load``."""
    folder = resolve(str(name))
    config = read_config(folder)
    if config.get("model_file") and not trust_remote_code:
        raise ModelError(
            f"{folder}: config.json asks to run the Python file {config['model_file']!r}; "
            "read it, then pass --trust-remote-code if you trust it"
        )
    if not weight_files(folder):
        raise ModelError(f"{folder}: no model*.safetensors; only safetensors weights are loaded")
    if scan:
        integrity.scan(folder)
    names = [n for file in weight_files(folder) for n in integrity.load_tensors(file)]
    understanding = understand(config, names)
    if understanding.refusals:
        raise ModelError(f"{folder}: {'; '.join(understanding.refusals)}")
    if ranks is not None:
        sharded.check(config, ranks.size)
    module, read = _load_module(
        folder, config, understanding, ranks, trust_remote_code=trust_remote_code
    )
    warnings, repairs = list(understanding.warnings), list(understanding.repairs)
    if count := speed_up(module, sum(file.stat().st_size for file in weight_files(folder))):
        repairs.append(f"{count} quantised matrices are multiplied in float32, as this is a CPU")
    if count := widen_experts(module):
        repairs.append(f"{count} expert matrices are multiplied in float32, as this is a CPU")
    longest, reason = understanding.ignored_window, ""
    if longest is not None:
        reason = next(limit.reason for limit in understanding.limits if limit.tokens == longest)
        if allow_window_mismatch:
            warnings.append(f"prompts over {longest} tokens differ from the config: {reason}")
            longest = None
    return {
        "module": module,
        "config": read,
        "name": str(name),
        "path": folder,
        "repairs": tuple(repairs),
        "warnings": tuple(warnings),
        "longest": longest,
        "longest_reason": reason,
    }


def _load_module(
    folder: Path,
    config: dict[str, Any],
    understanding: Any,
    ranks: Ranks | None,
    *,
    trust_remote_code: bool,
) -> tuple[nn.Module, dict[str, Any]]:
    from mlx_lm.utils import load_model

    options: dict[str, Any] = {"lazy": True, "trust_remote_code": trust_remote_code}
    if not config.get("model_file"):
        options["get_model_classes"] = model_classes(config, understanding)
    try:
        module, read = load_model(folder, model_config=dict(understanding.overrides), **options)
        if ranks is not None:
            sharded.divide(module, ranks)
        mx.eval(module.parameters())
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
        raise ModelError(
            f"{folder}: mlx_lm cannot load it ({integrity.reason(error)}); the weights and "
            "config.json must belong together"
        ) from error
    module.eval()
    return module, read


def wrap(
    module: nn.Module,
    config: dict[str, Any] | None = None,
    *,
    name: str = "model",
    ranks: Ranks | None = None,
) -> Model:
    """A ``Model`` around a module of mlx_lm in memory; of ``ranks`` each keeps its own part."""
    module.eval()
    if ranks is not None:
        sharded.divide(module, ranks)
    return Model(module, config or {}, name=name, ranks=ranks)
