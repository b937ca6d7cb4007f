"""Experiments on language models with MLX: any mlx_lm model, layer by layer.

``mlxroles.load`` and the edits are the names most programs need; everything else is imported
from the module that holds its subject (``mlxroles.direct``, ``mlxroles.lens``,
``mlxroles.vectors``), so that ``mlxroles --help`` never waits for a model library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxroles.edits import Edit as Edit
    from mlxroles.edits import mean as mean
    from mlxroles.edits import project_out as project_out
    from mlxroles.edits import resample as resample
    from mlxroles.edits import transplant as transplant
    from mlxroles.edits import zero as zero
    from mlxroles.models.load import load as load

__version__ = "0.1.0"
__all__ = [
    "Edit",
    "__version__",
    "load",
    "mean",
    "project_out",
    "resample",
    "transplant",
    "zero",
]

_EDITS = ("Edit", "mean", "project_out", "resample", "transplant", "zero")


def __getattr__(name: str) -> Any:
    """Loads the names above on first use; they pull in MLX, and ``load`` mlx_lm as well."""
    if name == "load":
        from mlxroles.models.load import load

        return load
    if name in _EDITS:
        from mlxroles import edits

        return getattr(edits, name)
    raise AttributeError(f"module 'mlxroles' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that exist and those that are loaded on first use."""
    return sorted({*globals(), *__all__})
