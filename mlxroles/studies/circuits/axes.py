"""What stands along the axes of the arrays of a study of circuits."""

COPYING = ("score", "low", "high", "null", "null_low", "null_high", "spread")
CURVES = ("curve_mean", "curve_low", "curve_high", "curve_spread", "curve_same")
EIGENVALUES = ("ov_real", "ov_imag", "qk_real", "qk_imag")
COMPOSITION = ("composition_q", "composition_k", "composition_v")
PAIRS = ("pair_left", "pair_right", "pair_value")

AXES = (
    dict.fromkeys(COPYING, ("head",))
    | dict.fromkeys(("copied", "others"), ("head", "id"))
    | dict.fromkeys(CURVES, ("head", "offset"))
    | dict.fromkeys(EIGENVALUES, ("head", "eigenvalue"))
    | dict.fromkeys(COMPOSITION, ("earlier_layer", "earlier_head", "head"))
    | dict.fromkeys(PAIRS, ("circuit", "end", "entry"))
    | {"random_ov": ("draw",), "random_qk": ("draw",)}
)
"""Array of a cell -> names of its axes."""


def axes_of(name: str, n_axes: int) -> tuple[str, ...]:
    """Names of the axes of an array; none of an array that is not known."""
    return AXES.get(name, ())[:n_axes]
