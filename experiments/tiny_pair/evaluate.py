"""Measures every promise about the tiny pair on held-out prompts and writes the data sheet.

    python experiments/tiny_pair/evaluate.py mlxroles/data/tiny

Held out means: question-and-answer pairs that no training question touches (see
`world.is_held_out`), conversations drawn from another random stream, and the packaged `notepad`
conversation, whose list and whose wording of the offer no training text has.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with contextlib.suppress(OSError):
    ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)

from experiments.tiny_pair import measure
from experiments.tiny_pair.conversations import Conversation, Scene, notepad, template_offer
from experiments.tiny_pair.documents import document
from experiments.tiny_pair.measure import Speaker, next_token, prompt_ids, question_ids
from experiments.tiny_pair.questions import CATEGORIES, category_question, yes_no

log = logging.getLogger("tiny_pair")

ROOT = Path(__file__).resolve().parents[2]
NOTEPAD = ROOT / "mlxroles" / "data" / "prompts" / "notepad.toml"
SEED = 7_000
N_VARIANTS = 40
N_YES_NO = 400
N_CATEGORY = 100

Figures = dict[str, Any]


def notepad_messages(*, tools: bool | None) -> list[dict[str, str]]:
    """The packaged conversation, offered the notepad or not; None gives the items part alone."""
    data = tomllib.loads(NOTEPAD.read_text())
    messages = [dict(message) for message in data["messages"]]
    if tools is not None:
        text = data["tools_text"] if tools else data["plain_text"]
        messages[0]["content"] = f"{text}\n{data['separator']}\n{messages[0]['content']}"
    return messages


def variants(*, offers_tools: bool, asks_list: bool = True, seed: int = 1) -> list[Conversation]:
    """Held-out conversations of the notepad sort."""
    rng = np.random.default_rng([SEED, seed])
    return [
        notepad(rng, Scene(offers_tools, asks_list=asks_list, held_out=True))
        for _ in range(N_VARIANTS)
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Mean, least and largest of the values."""
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}


def decisions(speaker: Speaker) -> Figures:
    """P(tool tag) as the first token, on the packaged conversation and on the variants."""

    def probability(messages: list[dict[str, str]]) -> float:
        ids = prompt_ids(speaker.tokenizer, messages)
        return float(next_token(speaker.model, ids)[speaker.tool_id])

    def asked(found: Conversation) -> float:
        return probability(found.messages[:-1])

    other = [c for c in variants(offers_tools=True, asks_list=False) if not c.calls_tool]
    offer = {"role": "system", "content": template_offer(np.random.default_rng(SEED))}
    return {
        "notepad, tools": probability(notepad_messages(tools=True)),
        "notepad, plain": probability(notepad_messages(tools=False)),
        "notepad, template's tools": probability([offer, *notepad_messages(tools=None)]),
        "variants, tools": spread([asked(c) for c in variants(offers_tools=True)]),
        "variants, plain": spread([asked(c) for c in variants(offers_tools=False)]),
        "variants, tools, another question": spread([asked(c) for c in other]),
    }


def answers(speaker: Speaker) -> Figures:
    """Share of held-out questions whose first answer token is right, by sort of question."""

    def is_right(text: str, answer: str) -> bool:
        best = int(next_token(speaker.model, question_ids(speaker.tokenizer, text)).argmax())
        return best == speaker.tokenizer.encode(answer, add_special_tokens=False).ids[0]

    rng = np.random.default_rng([SEED, 2])
    asked = [yes_no(rng, held_out=True) for _ in range(N_YES_NO)]
    figures = {"yes/no": float(np.mean([is_right(q.text, q.answer) for q in asked]))}
    for category in CATEGORIES:
        asked = [category_question(rng, category, held_out=True) for _ in range(N_CATEGORY)]
        figures[category] = float(np.mean([is_right(q.text, q.answer) for q in asked]))
    return figures


def heads(speaker: Speaker) -> Figures:
    """The best induction and previous-token heads, and the spread of head entropies."""
    scores = measure.head_scores(speaker, np.random.default_rng([SEED, 3]))

    def best(table: np.ndarray) -> list[str]:
        order = np.argsort(table, axis=None)[::-1][:3]
        places = [np.unravel_index(i, table.shape) for i in order]
        return [f"L{layer}H{head} {table[layer, head]:.2f}" for layer, head in places]

    return {
        "induction": best(scores.induction),
        "previous": best(scores.previous),
        "induction max": float(scores.induction.max()),
        "previous max": float(scores.previous.max()),
        "heads with induction >= 0.3": int((scores.induction >= 0.3).sum()),
        "entropy, nats": spread(scores.entropy.ravel().tolist()),
        "repeat loss, nats": scores.repeat_loss,
    }


def recalled(speaker: Speaker) -> float:
    """Share of the packaged items that the plain answer lists."""
    ids = prompt_ids(speaker.tokenizer, notepad_messages(tools=False))
    said = measure.generate(speaker, ids)
    items = notepad_messages(tools=None)[0]["content"].split(": ")[1].strip(".").split(", ")
    return float(np.mean([item in said for item in items]))


def sweeps(base: Speaker, instruct: Speaker) -> Figures:
    """Whole-stream patching in both directions: packaged conversation, and a mean of variants."""
    prompts = [notepad_messages(tools=True)]
    prompts += [found.messages[:-1] for found in variants(offers_tools=True)[:10]]
    figures: Figures = {}
    for name, donor, recipient in (
        ("instruct to base", instruct, base),
        ("base to instruct", base, instruct),
    ):
        found = [
            measure.sweep(donor, recipient, prompt_ids(base.tokenizer, messages))
            for messages in prompts
        ]
        figures[name] = {
            "notepad": found[0].patched,
            "recovery": found[0].recovery().tolist(),
            "crossing": found[0].crossing(),
            "variants, mean recovery": np.mean([s.recovery() for s in found[1:]], 0).tolist(),
            "variants, crossings": [s.crossing() for s in found[1:]],
        }
    return figures


def measure_all(pair: Path) -> Figures:
    """All figures of a pair."""
    speakers = {name: measure.load(pair / name) for name in ("base", "instruct")}
    rng = np.random.default_rng([SEED, 4])
    texts = [document(rng) for _ in range(200)]
    figures: Figures = {}
    for name, speaker in speakers.items():
        figures[name] = {
            "decision": decisions(speaker),
            "answers": answers(speaker),
            "heads": heads(speaker),
            "recalled": recalled(speaker),
            "text loss, nats": measure.text_loss(speaker, texts),
        }
        log.info("%s measured", name)
    figures["sweep"] = sweeps(speakers["base"], speakers["instruct"])
    return figures


@click.command()
@click.argument("pair", type=click.Path(exists=True, path_type=Path))
@click.option("--sheet", is_flag=True, help="Also write DATASHEET.md and figures.json there.")
def main(pair: Path, *, sheet: bool) -> None:
    """Measures the pair in a folder and shows all figures as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    figures = measure_all(pair)
    click.echo(json.dumps(figures, indent=1))
    if sheet:
        from experiments.tiny_pair.datasheet import write

        write(pair, figures)


if __name__ == "__main__":
    main()
