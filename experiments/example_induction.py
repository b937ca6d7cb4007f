"""Which heads repeat what was said before? Find them by score, take them out, compare with chance.

On random tokens x that come twice, [x, x], nothing but the repetition can be foreseen. The gain is
the loss on the first x less the loss on the second, in nats a token. Heads with a high induction
score are set to zero at all positions; so are random sets of as many other heads.

    python experiments/example_induction.py [MODEL]
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlxroles
from mlxroles.backend import mx
from mlxroles.detectors import head_scores, repeated
from mlxroles.heads import by_layer, head_name
from mlxroles.models.model import Model

SEQUENCES, LENGTH = 4, 24
RANDOM_SETS = 20


def gain(model: Model, tokens: np.ndarray, heads: list[tuple[int, int]]) -> float:
    """Loss on the first half less that on the second, without some heads."""
    edits = [mlxroles.zero("z", layer, heads=own) for layer, own in by_layer(heads).items()]
    logits = model.run(tokens, edits=edits).logits
    assert logits is not None
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    following = mx.array(tokens[:, 1:, None])
    loss = -mx.take_along_axis(log_probs[:, :-1], following, axis=-1)[..., 0]
    half = tokens.shape[1] // 2
    return float(loss[:, : half - 1].mean() - loss[:, half:].mean())


def main(name: str = "tiny/instruct") -> dict[str, object]:
    """Prints the answer and returns its numbers."""
    model, rng = mlxroles.load(name), np.random.default_rng(0)
    print(repr(model))
    tokens = repeated(model.vocab, rng, n=SEQUENCES, length=LENGTH, tokenizer=model.tokenizer)
    scores = head_scores(model, tokens)
    found = scores.marked("induction")
    print(f"induction heads: {', '.join(head_name(*head) for head in found)}")

    busy = {*found, *scores.marked("previous")}
    others = [head for head in scores.ranked("induction") if head not in busy]
    chance = []
    for _ in range(RANDOM_SETS):
        drawn = rng.choice(len(others), size=len(found), replace=False)
        chance.append(gain(model, tokens, [others[n] for n in drawn]))

    whole, without = gain(model, tokens, []), gain(model, tokens, found)
    p = (1 + sum(value <= without for value in chance)) / (1 + len(chance))
    print(f"gain from the repetition: {whole:.2f} nats a token")
    print(f"  without the {len(found)} induction heads: {without:.2f}")
    print(f"  without {len(found)} other heads, {len(chance)} sets: {min(chance):.2f} to "
          f"{max(chance):.2f} (p = {p:.3f})")  # fmt: skip
    return {"heads": found, "whole": whole, "without": without, "chance": chance, "p": p}


if __name__ == "__main__":
    main(*sys.argv[1:2])
