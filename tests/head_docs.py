"""Documents of a study of heads, made from random numbers."""

import numpy as np

NAMES = {
    "previous": 0.3,
    "previous_random": 0.3,
    "induction": 0.3,
    "duplicate": 0.3,
    "positional": 0.3,
    "first": 0.1,
    "self": 0.3,
    "final": 0.1,
    "delimiter": 2.0,
    "successor": 0.05,
    "s_inhibition": 0.1,
    "copying": 0.3,
}
PLANTED = {
    (0, 1): ("previous", 0.82),
    (1, 4): ("previous", 0.91),
    (2, 5): ("induction", 0.71),
    (3, 2): ("induction", 0.62),
    (0, 6): ("duplicate", 0.55),
    (4, 3): ("first", 0.88),
    (5, 0): ("delimiter", 0.6),
    (3, 7): ("successor", 0.4),
    (4, 1): ("s_inhibition", 0.35),
    (2, 2): ("copying", -0.5),
}


GAIN = ("gain", "the repetition gain")
LOSS = ("text_loss", "the loss on text")
NEXT = ("next_element", "the log-probability of the next element of a list")


def lists(array):
    """Nested lists with null for NaN."""
    if isinstance(array, np.ndarray):
        array = array.tolist()
    if isinstance(array, list):
        return [lists(one) for one in array]
    return None if array != array else array


def _side(rng, layers, heads, planted, offsets):
    detectors, margin = {}, {}
    for name, threshold in NAMES.items():
        score = rng.beta(1.2, 25, (layers, heads))
        uniform = np.full((layers, heads), 0.03)
        control = rng.beta(1.2, 40, (layers, heads))
        if name == "copying":
            score, uniform = rng.normal(0, 0.08, (layers, heads)), np.zeros((layers, heads))
        for at, (kind, value) in planted.items():
            if kind == name:
                score[at] = value
        half = 0.02 + 0.05 * np.abs(score) * rng.random((layers, heads))
        ratio = score / uniform if name == "delimiter" else score
        least = np.maximum(uniform, control) if name != "copying" else uniform
        marked = (np.abs(ratio) - half > threshold) & (np.abs(score) > least)
        margin[name] = np.where(marked, np.abs(ratio) / threshold, 0)
        best = np.unravel_index(np.argmax(np.abs(score)), score.shape)
        detectors[name] = {
            "score": lists(score),
            "low": lists(score - half),
            "high": lists(score + half),
            "uniform": lists(uniform),
            "control": lists(control),
            "marked": marked.tolist(),
            "threshold": threshold,
            "best": [int(n) for n in best],
        }
    stacked = np.stack(list(margin.values()))
    names = list(margin)
    classes = [["none"] * heads for _ in range(layers)]
    also = [[[] for _ in range(heads)] for _ in range(layers)]
    for i in range(layers):
        for j in range(heads):
            order = [n for n in np.argsort(-stacked[:, i, j]) if stacked[n, i, j] > 0]
            if order:
                classes[i][j] = names[order[0]]
                also[i][j] = [names[n] for n in order[1:]]
    d = np.arange(offsets)
    mean = rng.random((layers, heads, 1)) * np.exp(-d / 8) / 8 + 0.004
    for at, (kind, value) in planted.items():
        if kind == "previous":
            mean[*at, 1] = value
    profile = {
        "offsets": d.tolist(),
        "mean": lists(mean),
        "low": lists(mean * 0.9),
        "high": lists(mean * 1.1),
    }
    return {
        "name": "MODEL",
        "n_layers": layers,
        "n_heads": heads,
        "detectors": detectors,
        "profile": profile,
        "classes": classes,
        "also": also,
        "notes": [],
    }


def _pattern(rng, name, size):
    """A causal pattern [query, key] that does what the kind says."""
    logits = rng.normal(0, 1, (size, size))
    at = np.arange(size)
    if name == "previous":
        logits[at[1:], at[:-1]] += 6
    if name == "induction":
        back = size // 2 - 1
        logits[at[back:], at[back:] - back] += 5
    if name == "first":
        logits[:, 0] += 5
    logits[np.triu_indices(size, 1)] = -np.inf
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def head_doc(layers=6, heads=8, *, pair=True, offsets=64, seed=0, planted=None):
    """A document and the patterns of its examples."""
    rng = np.random.default_rng(seed)
    planted = dict(PLANTED if planted is None else planted)
    names = ["base", "instruct"] if pair else ["model"]
    models, examples, causal, patterns = {}, {}, {}, {}
    for n, side in enumerate(names):
        own = dict(planted)
        if n:
            own |= {(1, 1): ("induction", 0.5), (0, 6): ("duplicate", 0.4)}
        models[side] = _side(rng, layers, heads, own, offsets)
        examples[side], patterns[side] = {}, {}
        for at, (kind, _) in list(own.items())[:6]:
            name, size = f"L{at[0]}H{at[1]}", 64
            tokens = [f" t{i % 32}" for i in range(size)]
            where = "repeated" if kind in ("induction", "duplicate") else "text"
            examples[side][name] = {"set": where, "file": f"{side}/{name}", "tokens": tokens}
            patterns[side][name] = _pattern(rng, kind, size)
        causal[side] = [
            {
                "class": kind,
                "set": "all" if len(group) > 1 else "1",
                "heads": group,
                "measure": measure,
                "words": words,
                "unit": "nats",
                "way": 1 if change > 0 else -1,
                "clean": 3.4,
                "change": change,
                "low": change - 0.05,
                "high": change + 0.06,
                "n": 16,
                "random": (0.02 * rng.normal(size=20)).tolist(),
                "p": 1 / 21,
                "confirmed": abs(change) > 0.2,
            }
            for kind, group, (measure, words), change in (
                ("previous", ["L0H1", "L1H4"], GAIN, -1.9),
                ("previous", ["L1H4"], GAIN, -1.2),
                ("previous", ["L1H4"], LOSS, 0.21),
                ("induction", ["L2H5", "L3H2"], GAIN, -3.1),
                ("induction", ["L2H5"], GAIN, -0.9),
                ("induction", ["L2H5"], LOSS, 0.11),
                ("successor", ["L3H7"], NEXT, -0.8),
            )
        ]
    doc = {
        "schema": "mlxroles/heads/1",
        "display": "tiny (base, instruct)" if pair else "a model",
        "run_id": "0123456789ab",
        "seed": 0,
        "versions": {"mlxroles": "0.2.0", "mlx": "0.32"},
        "timestamp": "2026-11-21T13:00:00Z",
        "sentence": "base: 2 previous-token and 2 induction heads of 48; zeroing them takes the "
        "repetition gain away.",
        "notes": ["Nothing is known of the tokenizer."],
        "models": models,
        "examples": examples,
        "causal": causal,
    }
    if pair:
        doc["difference"] = {name: _difference(models, name) for name in NAMES}
    return doc, patterns


def _difference(models, name):
    found = [np.array(models[s]["detectors"][name]["score"]) for s in ("base", "instruct")]
    value = found[1] - found[0]
    return {
        "value": lists(value),
        "low": lists(value - 0.08),
        "high": lists(value + 0.08),
        "clear": (np.abs(value) > 0.08).tolist(),
    }
