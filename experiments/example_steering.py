"""Can a direction decide whether a model calls a tool? Make it from contrasts, test it on others.

The direction is the mean stream at the last token of conversations that offer a notepad, less
that of the same ones without the offer. On conversations that took no part in it, it is added
where nothing is offered, and projected out at every layer where a notepad is. Random directions
of the same length are what any push of that size would do.

    python experiments/example_steering.py [MODEL]
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlxroles
from mlxroles import vectors
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.models.model import Model
from mlxroles.prompts import Prompt, encode, load_prompts

LAYER = 4
RANDOM = 20
HELD_OUT = 3


def ids(model: Model, prompts: list[Prompt], *, offered: bool) -> list[list[int]]:
    """Token ids of conversations, with or without the offer."""
    encoded = (encode(p, model.tokenizer, tools=offered, vocab_size=model.vocab) for p in prompts)
    return [row.tolist() for row in encoded]


def p_tool(model: Model, rows: list[list[int]], *edits: Edit, cases: int = 1) -> np.ndarray:
    """Mean over conversations of the probability that the answer begins with a tool call [case].

    The cases run as one batch: the arrays of the edits have a row for each.
    """
    tag = model.tokenizer.convert_tokens_to_ids("<tool_call>")
    found = []
    for row in rows:
        logits = model.run([row] * cases, edits=edits, positions="last").logits
        assert logits is not None
        found.append(np.array(mx.softmax(logits, axis=-1)[:, 0, tag]))
    return np.mean(found, axis=0)


def main(name: str = "tiny/instruct") -> dict[str, object]:
    """Prints the answer and returns its numbers."""
    model, rng = mlxroles.load(name), np.random.default_rng(0)
    prompts = load_prompts("offers")
    made, held = prompts[::2], prompts[1::2][:HELD_OUT]
    toward = vectors.contrast(
        model, ids(model, made, offered=True), ids(model, made, offered=False), name="offered"
    )
    with_offer, without = ids(model, held, offered=True), ids(model, held, offered=False)

    [pushed] = p_tool(model, without, vectors.edit(toward, "offered", LAYER))
    noise = vectors.matched_noise(toward.at("offered", LAYER), RANDOM, rng)
    added = Edit("resid_post", LAYER, noise[:, None], "add")
    chance = p_tool(model, without, added, cases=RANDOM)
    [plain] = p_tool(model, without)
    print(f"P(tool call) where nothing is offered: {plain:.3f}")
    print(f"  with the direction added at layer {LAYER}: {pushed:.3f}")
    print(f"  with {RANDOM} random vectors of its length: at most {chance.max():.3f}")

    layers = range(model.n_layers)
    own = [vectors.edit(toward, "offered", layer, op="project") for layer in layers]
    shape = (RANDOM, 1, model.d_model)
    other = [mlxroles.project_out("resid_post", n, rng.standard_normal(shape)) for n in layers]
    [offered], [blocked] = p_tool(model, with_offer), p_tool(model, with_offer, *own)
    kept = p_tool(model, with_offer, *other, cases=RANDOM)
    print(f"P(tool call) where a notepad is offered: {offered:.3f}")
    print(f"  with the direction projected out at every layer: {blocked:.3f}")
    print(f"  with {RANDOM} random directions projected out: at least {kept.min():.3f}")

    said = model.generate(without[0], edits=[vectors.edit(toward, "offered", LAYER)], max_tokens=12)
    print(f"under the direction it says: {said.text!r}")
    return {
        "plain": plain, "pushed": pushed, "chance": chance,
        "offered": offered, "blocked": blocked, "kept": kept, "said": said.text,
    }  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:2])
