"""Versions of everything that may change a number, for manifests and documents."""

import platform
from importlib.metadata import PackageNotFoundError, version

from mlxroles import __version__

PACKAGES = ("mlx", "mlx-lm", "transformers", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Package -> version, with Python and the platform; packages that are missing are left out."""
    found = {"mlxroles": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"platform": platform.platform()}
