"""Captions of the role figures, and the errors of the original study that are not repeated."""

from mlxroles.report.roles.wording import shown

TOGETHER = ("comparison", "differences", "candidates")
"""Figures of the whole run, in the order in which they are shown."""
PER_MODEL = (
    "entropy",
    "roles",
    "contrasts",
    "confounder",
    "heads",
    "top_heads",
    "violins",
    "first_keys",
    "first_last",
)
"""Figures that each model has, in the same order."""

_CAPTIONS = {
    "comparison": "RFC (top) and RSI (bottom) per layer of both models, ratio of means over all "
    "heads, from nats (left) and length-normalised (right). Bands: 95 % bootstrap intervals over "
    "prompts. Only filled marks are significant after correction. Dashed: uniform attention on the "
    "same lengths.",
    "differences": "Instruct minus base per layer with 95 % bootstrap intervals; the same resample "
    "of prompts serves both models. Only filled marks are significant after correction; a "
    "half-filled one reverses among prompts of equal length.",
    "candidates": "The heads with the highest composite scores (numbers). Bars: how "
    "far the score lies from the head's own scores under shuffled labels, in their standard "
    "deviations; left of the dashed line it is within what the best of all heads reaches by "
    "chance. Right: difference in differences, instruct minus base, focus minus reference.",
    "entropy": "Mean attention entropy per layer and category, in nats (left) and as a share of "
    "uniform attention's (right). Bands: 95 % bootstrap intervals over prompts.",
    "roles": "RFC and RSI per layer with 95 % bootstrap intervals, from nats (left) and "
    "length-normalised (right). Only filled marks are significant after correction.",
    "contrasts": "Differences in mean entropy per layer: focus minus reference and focus minus "
    "confounder, below 0 where focus prompts have the lower entropy (RFC and RSI above 0).",
    "confounder": "Focus minus confounder per layer: below 0 where focus prompts have the lower "
    "entropy.",
    "heads": "Focus minus each other category for every head, length-normalised: below 0 where "
    "focus prompts have the lower entropy.",
    "top_heads": "Per layer the three heads with the largest difference between focus and "
    "confounder, however small; no test.",
    "violins": "Entropy per prompt of the heads that differ with the smallest p between focus and "
    "reference. Chosen for their p: see q.",
    "first_keys": "Attention to the first three keys per head, in selected layers.",
    "first_last": "Focus minus reference: attention to the first keys and to the most recent ones.",
}
_FOOTNOTES = {
    "comparison": "The original study left out heads 28 to 31 of models that have 32, and paired "
    "unrelated prompts by their place in the list for the intervals of its figures. Here all heads "
    "count, and prompts are resampled within their category.",
    "differences": "The original study called a layer changed beyond a threshold of .01. A "
    "threshold is not a test: in its own tables 2 of 32 layers of Llama, 20 of 32 of Mistral and "
    "none of Qwen had an RFC interval that excludes 0.",
    "candidates": "The original study paired prompts by index, which compares unrelated "
    "questions, and had no null. Here medians per category are compared and the score is set "
    "against shuffled labels.",
    "entropy": "The original study's bands had no width and could not be seen. To a head whose "
    "weights are all zero its added 1e-8 gives the largest entropy, ln T; nothing is added here.",
    "heads": "The original heat map showed the mean of |p|. The rows of a pattern sum to 1, so it "
    "was the mean of 1/T: prompt length and nothing of the head.",
    "violins": "The original study took its top heads from that heat map, in an arbitrary order.",
    "first_last": "The original study's first and last three keys overlap in prompts of up to "
    "five tokens.",
}


def caption(name: str) -> str:
    """The caption of a figure, with the model's name where it has one."""
    kind, model = split(name)
    text = _CAPTIONS.get(kind)
    if text is None:
        return shown(name, 80)
    return text if model in (None, "model") else f"{shown(model, 20)}: {text}"


def is_repeated(name: str, models: int) -> bool:
    """Whether a page with other figures leaves this one out, as a file beside it.

    ``confounder`` is one line of ``contrasts``; of two models ``comparison`` shows ``roles``.
    """
    kind, _ = split(name)
    return kind == "confounder" or (kind == "roles" and models > 1)


def footnote(name: str) -> str:
    """What the original study got wrong about such a figure and we do not, or nothing."""
    return _FOOTNOTES.get(split(name)[0], "")


def split(name: str) -> tuple[str, str | None]:
    """Kind and model of a figure's name: ``top_heads_base`` is (``top_heads``, ``base``)."""
    if name in TOGETHER:
        return name, None
    kinds = sorted(PER_MODEL, key=len, reverse=True)
    for kind in kinds:
        if name.startswith(f"{kind}_"):
            return kind, name.removeprefix(f"{kind}_")
    return name, None
