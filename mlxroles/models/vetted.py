"""The self-checks of ``check`` before a study begins, once per model, device and versions.

A model whose architecture is not causal, or whose hooks move a logit, would give numbers that look
like any others. The verdict is remembered under the hash of the model's files; a refusal is
not, since its cause may be the machine's state.
"""

from typing import Any

from mlxroles import cache
from mlxroles.backend import device_name, on_gpu
from mlxroles.errors import ModelError
from mlxroles.models.check import check
from mlxroles.models.model import Model
from mlxroles.versions import versions

LARGEST_ON_CPU = 300_000_000
"""Weights in bytes up to which the checks take seconds on a CPU."""


def vet(model: Model, sha256: str, n_bytes: int) -> list[str]:
    """What a reader of results should know about the model, one line each.

    Args:
        model: A loaded model.
        sha256: Of its files.
        n_bytes: Size of its weights.

    Raises:
        ModelError: the checks say that none of its numbers can be trusted.
    """
    notes = [*model.repairs, *model.warnings]
    if n_bytes > LARGEST_ON_CPU and not on_gpu():
        return [*notes, "too large for self-checks on a CPU; `mlxroles models check` runs them"]
    found = versions()
    named = (found.get(name, "") for name in ("mlxroles", "mlx", "mlx-lm"))
    parts = [] if model.ranks is None else [f"{model.ranks.size} processes"]
    key = ":".join([sha256, device_name(), *named, *parts])
    kept = cache.read("checks").get(key)
    if model.ranks is not None and None in model.ranks.exchange(kept):
        kept = None  # one that has to look needs the others for it
    if not isinstance(kept, dict):
        report = check(model)
        # the warnings of this loading are not those of the next
        found_out = [text for text in report.notes if text not in model.warnings]
        kept = {"verdict": report.verdict, "notes": found_out}
        if model.ranks is not None:
            kept = _worst(model.ranks.exchange(kept))
        if report.verdict != "refused":
            cache.remember("checks", key, kept)
    # what a site lacks is said when the site is asked for
    said = [text for text in kept["notes"] if not text.startswith("no ")]
    if kept["verdict"] == "refused":
        raise ModelError(
            f"{model.name}: the self-checks refuse it ({'; '.join(said) or 'see the check'}); "
            "`mlxroles models check` shows them"
        )
    return [*notes, *said]


def _worst(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """What the checks of several processes, each of its own heads, come to together."""
    notes = dict.fromkeys(text for part in kept for text in part["notes"])
    verdicts = {part["verdict"] for part in kept}
    found = next(v for v in ("refused", "partial", "works") if v in verdicts)
    return {"verdict": found, "notes": list(notes)}
