"""What stands along the axes of the arrays of a study of heads."""

_HEADS = ("sequence", "layer", "head")
_AXES = {"score": _HEADS, "uniform": _HEADS, "control": _HEADS, "extra": _HEADS}


def axes_of(name: str, n_axes: int) -> tuple[str, ...]:
    """Names of the axes of an array; as many as are known of a name that is not."""
    if name == "profile_uniform":
        known: tuple[str, ...] = ("sequence", "layer", "offset")
    elif name.startswith("profile"):
        known = (*_HEADS, "offset")
    elif name.startswith("pattern_"):
        known = ("query", "key")
    elif name.startswith("random_"):
        known = ("random",)
    else:
        known = _AXES.get(name.partition("_")[0], ("case",))
    return known[:n_axes]
