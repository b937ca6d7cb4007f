"""Experiments on language models with MLX: any mlx_lm model, layer by layer.

``mlxroles.load`` is the one name most programs need; everything else is imported from the
module that holds its subject, so that ``mlxroles --help`` never waits for a model library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxroles.models.load import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Loads ``load`` on first use; it pulls in MLX and mlx_lm."""
    if name == "load":
        from mlxroles.models.load import load

        return load
    raise AttributeError(f"module 'mlxroles' has no attribute {name!r}")
