"""What an injection run found, in plain words: the finding first, then what it is held against."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.text import safe_text

Values = Mapping[str, Any]

ALPHA = 0.05
"""A p-value up to this counts as evidence."""
ANSWERS = 0.7
"""Share of controls answered right below which a model's word means little; one half is chance."""
ANSWERING = 0.5
"""Probability of any of the answers below which a question is not answered as it is asked."""
ALL = "all"


def sentence(doc: Values) -> str:
    """One to three sentences per model."""
    parts = [_model(doc, model) for model in doc["models"]]
    found = " ".join(part for part in parts if part)
    if not found:
        return "Nothing is measured yet."
    return " ".join(filter(None, (found, caution(doc))))


def caution(doc: Values) -> str:
    """What keeps the run from saying more."""
    n, said = doc["n_random"], []
    if n < 1 / ALPHA - 1:
        least = "no p" if not n else f"no p below {number(1 / (1 + n), '.2f')}"
        said.append(f"With {n} random vectors {least} can be had; 20 allow {ALPHA}.")
    for test in doc["tests"]:
        before = documents.number(test, "controls_right_before")
        if before < ANSWERS and test["vector"] == doc["vectors"][0]:
            said.append(
                f"{who(doc, test['model'])} answers only {share(before)} of the controls right "
                "without any injection (50 % is chance): what it says about itself means little."
            )
    for model, found in doc["models"].items():
        clean = [] if doc["mode"] == "prompts" else list(found["clean"].values())
        level = min((documents.number(each, "p_answer") for each in clean), default=1.0)
        if level < ANSWERING:
            what = "the numbers" if doc["mode"] == "localise" else "Yes or No"
            said.append(
                f"{who(doc, model)} answers with {what} with a probability of {probability(level)} "
                "only: the question is hardly understood."
            )
    return " ".join(said)


def headline_tests(doc: Values, model: str) -> list[Values]:
    """The tests that a model's finding rests on: the mean over vectors where there are several."""
    tests = [test for test in doc["tests"] if test["model"] == model]
    pooled = [test for test in tests if test["vector"] == ALL and ALL not in doc["vectors"]]
    if pooled:
        return pooled
    found: dict[tuple[str, str], Values] = {}
    for test in tests:
        key = (str(test.get("role")), test["test"])
        best = found.get(key)
        if best is None or rank(test) > rank(best):
            found[key] = test
    return list(found.values())


def rank(test: Values) -> tuple[float, float]:
    """Tests in order of evidence: a small p, then a large distance in standard deviations."""
    p = documents.number(test, "p_any")
    return -1.0 if math.isnan(p) else -p, abs(documents.number(test, "t"))


def where(doc: Values) -> str:
    """Where the vector was added, in words."""
    named = {
        "all": "all positions",
        "last": "the last position",
        "question": "the question's positions",
        "before the question": "all positions before the question",
        "each sentence": "the positions of one sentence",
    }
    text = doc["positions"]
    return named.get(text, f"positions of {safe_text(text, limit=60)}")


def verdict(doc: Values, test: Values) -> str:
    """What one test comes to, in half a line."""
    if math.isnan(documents.number(test, "p_any")):
        return "nothing to compare with: no random vectors"
    is_clear = documents.number(test, "p_any") <= ALPHA
    least = 1 / (1 + doc["n_random"])
    if least > ALPHA and documents.number(test, "p_any") <= least + 1e-9:
        return f"beyond all {doc['n_random']} random vectors, which are too few to tell"
    if test["test"] == "score":
        return _noticing(test) if is_clear else "no evidence: random vectors do as much"
    if test["test"] == "right":
        above = documents.number(test, "value") > documents.number(test, "chance")
        if is_clear and above:
            return "names the place better than with random vectors"
        return "no evidence that the place is known"
    return "beyond random vectors" if is_clear else "random vectors do as much"


def _noticing(test: Values) -> str:
    score, excess = (documents.number(test, key) for key in ("value", "excess"))
    asked = documents.number(test, "shift_detect")
    is_beyond = documents.number(test, "p_any_excess") <= ALPHA
    if score < 0:
        return "the controls move towards Yes more than the question does"
    if asked <= 0:
        return "the question does not move towards Yes, the controls move towards No"
    if excess <= 0 or not is_beyond:
        return "what a pull of sure answers towards zero would do too"
    return "the question moves beyond controls and random vectors"


def _model(doc: Values, model: str) -> str:
    tests = headline_tests(doc, model)
    said = {"battery": _battery, "localise": _located, "prompts": _steered}[doc["mode"]]
    return " ".join(said(doc, model, test) for test in tests)


def _battery(doc: Values, model: str, test: Values) -> str:
    is_shown = documents.number(test, "p_any") <= ALPHA and "beyond controls" in verdict(doc, test)
    what = vector(doc, test)
    opening = (
        f"{who(doc, model)} answers as if it noticed {what}"
        if is_shown
        else f"No evidence that {who(doc, model)} notices {what}"
    )
    text = f"{opening}: {spot(test)}, {strongest(test)}, "
    if is_mean(doc, test["vector"]):
        text += f"the mean score of {test['n_vectors']} vectors is {_value(test)}"
    else:
        text += (
            f"asked about an injection Yes - No moves by {number(test['shift_detect'])}, in the No "
            f"controls by {number(test['shift_no'])}: score {_value(test)}, "
            f"z {number(test['z'])}, above {share(test['percentile'])} of the controls"
        )
    text += f"; {against(doc, test)}"
    why = verdict(doc, test)
    is_clear = documents.number(test, "p_any") <= ALPHA
    is_said = (is_clear or "too few" in why) and not is_shown
    return f"{text} ({why})." if is_said else f"{text}."


def _located(doc: Values, model: str, test: Values) -> str:
    is_shown = "better" in verdict(doc, test)
    opening = (
        f"{who(doc, model)} can tell where {vector(doc, test)} was put"
        if is_shown
        else f"No evidence that {who(doc, model)} can tell where {vector(doc, test)} was put"
    )
    return (
        f"{opening}: right in {share(test['value'])} of the trials {_shares(test)} {spot(test)}, "
        f"{strongest(test)}, where chance is {share(test['chance'])}; "
        f"{against(doc, test)}."
    )


def _steered(doc: Values, model: str, test: Values) -> str:
    what, string = vector(doc, test), doc["headline"].removeprefix("log-odds of ")
    is_out = test["test"] == "out"
    layers = "of every layer" if is_out else spot(test)
    done = f"projecting {what} out {layers}" if is_out else f"adding {what} {layers}"
    if is_out:
        is_all = test["layer"] == ALL
        done += (
            " (the directions of all of them)" if is_all else f" (that of layer {test['layer']})"
        )
    from_to = f"{probability(test['clean_probability'])} to {probability(test['probability'])}"
    random = f"{probability(test['random_least'])} to {probability(test['random_most'])}"
    count = test["n_prompts"]
    which = {"toward": " that show", "away": " that lack"}.get(test["role"], "")
    which = f"{which}{'s' * (count == 1)} it" if which else ""
    prompts = f"{counted(count, 'prompt')}{which}"
    return (
        f"{who(doc, model)}: {done} takes P({string}) from {from_to} on {prompts}"
        f"{_interval(test, 'probability_ci', probability)}, random vectors {random}; "
        f"p {number(test['p_any'], '.3f')} over {spots(test)}, "
        f"{verdict(doc, test)}."
    )


def is_mean(doc: Values, name: str) -> bool:
    """Whether this stands for the mean over vectors, and is no vector's name."""
    return name == ALL and ALL not in doc["vectors"]


def vector(doc: Values, test: Values) -> str:
    """The vector in words."""
    if is_mean(doc, test["vector"]):
        return f"any of {len(doc['vectors'])} injected vectors"
    return f"'{safe_text(test['vector'], limit=40)}'"


def spot(test: Values) -> str:
    """Where and how strongly."""
    if test["scale"] == "out":
        return "projected out"
    return f"at layer {test['layer']}, scale {test['scale']:g}"


def spots(test: Values) -> str:
    """How many spots there were to choose from."""
    total = test["n_all_spots"]
    if test["n_spots"] < total:
        return f"{counted(test['n_spots'], 'spot')} where it still answers (of {total})"
    return counted(test["n_spots"], "spot")


def strongest(test: Values) -> str:
    """What a spot is among all that were tested."""
    return "the only spot" if test["n_all_spots"] == 1 else f"the strongest of {spots(test)}"


def counted(count: int, noun: str) -> str:
    """``1 spot``, ``2 spots``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def who(doc: Values, model: str) -> str:
    """What a model is called: a single one by the name of its folder."""
    return safe_text(str(doc.get("display")), limit=60) if model == "model" else model


def against(doc: Values, test: Values) -> str:
    """The p-value and what it is of."""
    if math.isnan(documents.number(test, "p_any")):
        return "no random vectors to compare with"
    return (
        f"p {number(test['p_any'], '.3f')} over all spots against {doc['n_random']} random vectors "
        "of its length"
    )


def number(value: Any, form: str = "+.2f") -> str:
    """A number with its sign; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:{form}}".replace("-", "−")


def probability(value: Any) -> str:
    """A probability with three digits where it is not close to zero."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 0.0005 or not value else f"{value:.0e}"


def share(value: Any) -> str:
    """A share in percent."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def _value(test: Values) -> str:
    return f"{number(test['value'])}{_interval(test, 'value_ci', number)}"


def _interval(test: Values, key: str, form: Any) -> str:
    bounds: Sequence[Any] = test.get(key) or ()
    if len(bounds) != 2 or None in bounds:
        return ""
    return f" (95 % {form(bounds[0])} to {form(bounds[1])})"


def _shares(test: Values) -> str:
    count = f"of {test['n_trials']}, " if "n_trials" in test else ""
    bounds: Sequence[Any] = test.get("value_ci") or ()
    is_known = len(bounds) == 2 and None not in bounds
    inside = f"95 % {share(bounds[0])} to {share(bounds[1])}" if is_known else ""
    return f"({count}{inside})"


def lines(doc: Values) -> Iterator[str]:
    """The sentences one by one, for a terminal."""
    for model in doc["models"]:
        for test in headline_tests(doc, model):
            said = {"battery": _battery, "localise": _located, "prompts": _steered}[doc["mode"]]
            yield said(doc, model, test)
    if caution(doc):
        yield caution(doc)
