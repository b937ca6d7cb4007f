"""Builds documents and event streams of patch runs that never happened, smooth and repeatable."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from mlxroles import documents
from mlxroles.events import Cell, CellDone, CellFailed, Event, Note, RunFinished, RunStarted, Stage

TOKENS = ("<tool_call>", "save", " the", "\n\n", "<|im_end|>", "I", "{", '"name"')

HOSTILE = (
    "[b]bold[/b] [/nope]",
    "\x1b]0;owned\x07\x1b[2J",
    "$\\frac$",
    "星座を保存",
    "\u202egnp.exe",
    "nul\x00byte",
    "\ud800lone",
    "<script>alert(1)</script>",
    "🚀 | `x` & 'y' \"z\"",
)


def odds(prob: float) -> float:
    """The log-odds of a probability, in nats."""
    return math.log(prob / (1 - prob))


def values(prob: float, *, tokens: Sequence[str] = TOKENS) -> dict[str, Any]:
    """The numbers of one measurement whose headline probability is ``prob``."""
    rest = (1 - prob) / 2
    probs = [prob, *(rest / 2**step for step in range(4))]
    top = sorted(zip(probs, tokens, strict=False), reverse=True)
    return {
        "tool_call_prob": prob,
        "p_first_token": prob,
        "p_chain": prob,
        "p_union": min(prob * 1.01, 1.0),
        "log_odds": odds(prob),
        "log_prob": math.log(prob),
        "logit_diff": odds(prob),
        "rank": 0 if prob > rest else 1,
        "entropy": -sum(p * math.log(p) for p in probs),
        "top5": [
            {"id": tokens.index(token), "token": token, "prob": round(each, 6)}
            for each, token in top
        ],
        "strings": {},
    }


def cell(prob: float, target: float, giver: float, **more: Any) -> dict[str, Any]:
    """The numbers of a patched run between these two baselines."""
    gap = odds(giver) - odds(target)
    return values(prob, tokens=more.pop("tokens", TOKENS)) | {
        "effect": prob - target,
        "effect_log_odds": odds(prob) - odds(target),
        "recovery": (odds(prob) - odds(target)) / gap if gap else None,
        "recovery_prob": (prob - target) / (giver - target) if gap else None,
        "increment": None,
        "kl": abs(prob - target),
        "time_s": 0.25,
        **more,
    }


def patch_doc(
    n_layers: int = 6,
    *,
    layers: Sequence[int] | None = None,
    prompts: int = 1,
    controls: Sequence[str] = ("other_prompt", "random"),
    baselines: tuple[float, float] = (0.93, 0.004),
    tokens: Sequence[str] = TOKENS,
    **more: Any,
) -> dict[str, Any]:
    """A patch document in which recovery rises as a sigmoid about the middle layer."""
    tested = list(range(n_layers)) if layers is None else list(layers)
    level = {"instruct": baselines[0], "base": baselines[1]}
    doc: dict[str, Any] = {
        "schema": "mlxroles/patch/1",
        "run": "results/patch/0123abcd",
        "run_id": "0123abcd",
        "pair": "tiny",
        "display": "Tiny (6 layers)",
        "d1_group": None,
        "n_layers": n_layers,
        "n_tokens": 312,
        "n_tokens_per_prompt": [312] * prompts,
        "layers_tested": tested,
        "site": "resid_post",
        "positions": "all",
        "heads": None,
        "prompts": [{"id": f"notepad{i}", "n_tokens": 312, "digest": "ab"} for i in range(prompts)],
        "headline": "<tool_call>",
        "strings": {"<tool_call>": {"ids": [5], "variants": []}},
        "recovery_metric": "log_odds",
        "baselines": {model: values(prob, tokens=tokens) for model, prob in level.items()},
        "controls": {name: {} for name in controls},
        "summary": {},
        "timestamp": "2026-11-20T12:00:00Z",
        "versions": {"mlxroles": "0.1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2"},
        "failed_cells": [],
        "figures": {},
    }
    for direction in documents.DIRECTIONS:
        ends = level[documents.recipient(direction)], level[documents.donor(direction)]
        doc[direction] = _curve(tested, n_layers, ends, 1.0, prompts, tokens)
        for strength, name in zip((0.12, 0.03), controls, strict=False):
            doc["controls"][name][direction] = _curve(
                tested, n_layers, ends, strength, prompts, tokens
            )
    return doc | more


def _curve(
    tested: Sequence[int],
    n_layers: int,
    ends: tuple[float, float],
    strength: float,
    prompts: int,
    tokens: Sequence[str],
) -> dict[str, Any]:
    target, giver = ends
    found: dict[str, Any] = {}
    before = 0.0
    for layer in tested:
        steepness = 12 / max(n_layers, 2)
        share = strength / (1 + math.exp(-steepness * (layer - n_layers * 0.45)))
        log_odds = odds(target) + share * (odds(giver) - odds(target))
        entry = cell(1 / (1 + math.exp(-log_odds)), target, giver, tokens=tokens)
        if entry["recovery"] is not None:
            entry["increment"] = entry["recovery"] - before
            before = entry["recovery"]
        if prompts > 1:
            for name, spread in (("tool_call_prob", 0.04), ("effect", 0.04), ("recovery", 0.08)):
                middle = entry[name] or 0.0
                entry[f"{name}_ci"] = [middle - spread, middle + spread]
        found[str(layer)] = entry
    return found


def by_part(axis: str, count: int, n_layers: int = 6) -> dict[str, Any]:
    """A document whose layers hold ``by_head`` or ``by_position`` with ``count`` entries each."""
    doc = patch_doc(n_layers, controls=())
    for direction in documents.DIRECTIONS:
        sign = 1 if direction == "instruct_to_base" else -1
        for layer in doc["layers_tested"]:
            share = {
                str(part): sign * 0.4 * math.sin(part * 1.7 + layer) ** 5 for part in range(count)
            }
            doc[direction][str(layer)] = {
                axis: {
                    part: cell(0.5 + each, 0.5, 0.5 + sign * 0.45) for part, each in share.items()
                }
            }
    doc["baselines"] = {"instruct": values(0.95), "base": values(0.5)}
    if axis == "by_head":
        return doc | {"site": "z", "heads": "each"}
    return doc | {"site": "resid_post", "positions": "each"}


def event_stream(doc: dict[str, Any], *, trouble: bool = False) -> Iterator[Event]:
    """The events of the run that this document would summarise; ``trouble`` adds failures."""
    plan: list[tuple[Cell, dict[str, Any]]] = []
    for model in ("instruct", "base"):
        coords = {"baseline": model, "prompt": "notepad0"}
        plan.append((Cell(f"baseline/{model}", coords), doc["baselines"][model]))
    for control in (None, *doc["controls"]):
        for direction in documents.DIRECTIONS:
            source = doc if control is None else doc["controls"][control]
            for layer in doc["layers_tested"]:
                coords = {
                    "direction": direction,
                    "layer": layer,
                    "prompt": "notepad0",
                    "control": control,
                }
                name = f"{direction}/resid_post/L{layer:02d}/{control or 'all'}"
                plan.append((Cell(name, coords), source[direction][str(layer)]))
    title = " · ".join([doc["display"], "notepad0", doc["site"]])
    yield RunStarted(title, "results/patch/0123abcd", [entry[0] for entry in plan], 2)
    yield Stage("loading base")
    failed = 0
    for number, (each, numbers) in enumerate(plan):
        if trouble and number % 7 == 5:
            failed += 1
            yield CellFailed(each, "out of memory: 1.2 GB wanted [/b]\nrow 2")
        elif trouble and number % 7 == 6:
            yield CellDone(each, numbers | {"tool_call_prob": None}, 0.25, tokens=312)
        else:
            yield CellDone(each, numbers, 0.25, tokens=312, restored=number < 2)
    if trouble:
        yield Note("the cache limit is low: runs may be slow")
    yield RunFinished(len(plan) - failed, failed, 0.25 * len(plan))
