"""What one rank of a group does for ``test_tensor_parallel``: prints one JSON document.

Every rank builds the same models twice, whole and divided, so that each compares its own runs.
"""

import json
import sys

import architectures
import numpy as np
from tiny_models import off, tiny_llama

from mlxroles import engine
from mlxroles.backend import mx, nn
from mlxroles.edits import DERIVED, EDITABLE, SITES, STREAM_SITES, Edit, transplant
from mlxroles.engine import Row, memory
from mlxroles.forward import by_blocks, forward
from mlxroles.models.load import wrap
from mlxroles.ranks import Ranks

LENGTH = 12


def built(name):
    """A tiny module: of mlx_lm, or a Llama in another shape, type or quantisation."""
    if name == "llama 4-bit":
        module = tiny_llama(6, hidden_size=128, intermediate_size=256)
        nn.quantize(module, group_size=32, bits=4)
        return module
    if name == "llama 8 heads":
        wide = {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
        return tiny_llama(5, **wide)
    return tiny_llama(5) if name == "llama" else architectures.build(name)


def relative(a, b):
    """Largest difference as a share of the largest value."""
    size = float(np.abs(np.array(b.astype(mx.float32) if isinstance(b, mx.array) else b)).max())
    return off(a, b) / max(size, 1e-6)


def offered(network):
    """Sites that every layer with attention has."""
    blocks = network.anatomy.blocks
    return [s for s in SITES if any(s not in block.missing for block in blocks)]


def tokens(seed, batch=1):
    return mx.array(np.random.default_rng(seed).integers(0, 60, (batch, LENGTH)))


def captured(model, part):
    """Differences of all sites and the logits of two prompts, by site."""
    found, groups = {"logits": 0.0}, {}
    asked = tokens(1, 2)
    blocks = model.network.anatomy.blocks
    for site in offered(model.network):
        layers = tuple(i for i, block in enumerate(blocks) if site not in block.missing)
        groups.setdefault((layers, site == "entropy"), []).append(site)
    for (layers, is_entropy), sites in groups.items():
        names = [*sites, *(DERIVED if is_entropy else ())]
        whole = forward(model.network, asked, keep=names, layers=layers)
        own = forward(part.network, asked, keep=names, layers=layers)
        found["logits"] = max(found["logits"], relative(own.logits, whole.logits))
        for name in names:
            pairs = [(own[name, i], whole[name, i]) for i in layers]
            found[name] = max(relative(*map(mx.nan_to_num, pair)) for pair in pairs)
    return found


def drawn(model, rng, site):
    """One random edit at a site of a random layer."""
    network = model.network
    layers = [i for i, b in enumerate(network.anatomy.blocks) if site not in b.missing]
    layer, where = int(rng.choice(layers)), {}
    block = network.block(layer)
    heads = block.kv_heads if site in ("k", "v") else block.heads
    if rng.random() < 0.6:
        chosen = rng.choice(LENGTH, int(rng.integers(1, 4)), replace=False)
        where["positions"] = sorted(int(p) for p in chosen)
    if site not in STREAM_SITES and rng.random() < 0.7:
        chosen = rng.choice(heads, int(rng.integers(1, heads + 1)), replace=False)
        where["heads"] = [int(h) for h in chosen]
    kind = rng.choice(["donor", "scale", "add", "project"])
    if kind == "scale":
        return Edit(site, layer, float(rng.choice([-1.0, 0.0, 2.0])), "scale", **where)
    if kind == "add":
        return Edit(site, layer, 0.3, "add", **where)
    theirs = forward(network, tokens(2), keep=[site], layers=[layer])[site, layer]
    if kind == "donor" or site == "pattern":
        return transplant(site, layer, theirs, **where)
    direction = mx.array(rng.standard_normal(theirs.shape[-1], dtype=np.float32))
    return Edit(site, layer, direction, "project", **where)


def rows(model, rng):
    """Random edits, one to three a row; every site begins one."""
    sites = [s for s in EDITABLE if s in offered(model.network)]
    made = []
    for n in range(len(sites)):
        more = [str(rng.choice(sites)) for _ in range(n % 3)]
        edits = tuple(drawn(model, rng, site) for site in (sites[n], *more))
        made.append(Row(edits, int(rng.integers(0, 2))))
    return made


def edited(model, part):
    """Largest difference of patched runs, alone and in batches of the engine, by way."""
    asked, worst = tokens(3, 2), {"forward": 0.0}
    made = rows(model, np.random.default_rng(4))
    read = [LENGTH - 2, LENGTH - 1]
    alone = []
    for row in made:
        prompt = asked[row.prompt : row.prompt + 1]
        runs = [forward(m.network, prompt, edits=row.edits, read=read) for m in (model, part)]
        pair = [run.logits for run in runs]
        worst["forward"] = max(worst["forward"], relative(pair[1], pair[0]))
        alone.append(pair[0][0])
    layers = sorted({edit.layer for row in made for edit in row.edits})
    known = sorted({row.edits[0].site for row in made})
    if any(site in part.network.block(i).missing for site in known for i in layers):
        known = []
    ways = {"engine": {}, "known": {"site": known}}
    ways["late"] = {"site": known, "layers": layers, "late": True}
    for name, options in ways.items():
        own = engine.clean(part.network, asked, read=read, **options)
        answers = engine.run(part.network, own, made)
        worst[name] = max(relative(a.logits, w) for a, w in zip(answers, alone, strict=True))
    return worst


def blocks(model, part):
    """Entropies of a prompt that runs in blocks of queries."""
    if "entropy" not in offered(model.network) or not model.network.anatomy.plain_cache:
        return 0.0
    pair = []
    for m in (model, part):
        runs = by_blocks(m.network, tokens(5), keep=["entropy"], size=4)
        pair.append(mx.concatenate([run["entropy"] for _, run in runs], axis=-1))
    return relative(pair[1], pair[0])


def main(names):
    ranks = Ranks.start()
    found = {"rank": ranks.rank, "size": ranks.size}
    for name in names:
        model = wrap(built(name), name=name)
        part = wrap(built(name), name=name, ranks=ranks)
        sizes = [memory.sizes(m.network) for m in (model, part)]
        found[name] = {
            "captured": captured(model, part),
            "edited": edited(model, part) if offered(model.network) else {},
            "blocks": blocks(model, part),
            "weights": sizes[1].weights / sizes[0].weights,
            "heads": [sizes[0].heads, sizes[1].heads],
        }
    sys.stdout.write(json.dumps(found) + "\n")
