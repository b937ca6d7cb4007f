"""Versions of everything that may change a number, for manifests and documents."""

import datetime
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from mlxroles import __version__

PACKAGES = ("mlx", "mlx-lm", "transformers", "numpy", "h5py")


def versions() -> dict[str, str]:
    """Package -> version, with Python and the platform; packages that are missing are left out."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    """Looked up once: what a process has imported does not change."""
    found = {"mlxroles": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"platform": platform.platform()}


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
