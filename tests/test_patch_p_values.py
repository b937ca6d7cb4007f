"""p-values of a patch run over several prompts, from made-up cells against plain enumeration."""

import io
import itertools
import math

import numpy as np
import patch_docs
import pytest
from rich.console import Console

from mlxroles.dashboard import final_table
from mlxroles.documents import DIRECTIONS, recipient
from mlxroles.report.rows import how_tested, layer_grid
from mlxroles.studies import patch_document
from mlxroles.studies.patch_document import TESTED

LAYERS = 4
SOURCE = {
    "effect": "tool_call_prob",
    "effect_log_odds": "log_odds",
    "effect_logit_diff": "logit_diff",
}


class Prompt:
    def __init__(self, n):
        self.id, self.n_tokens, self.digest, self.category = f"p{n}", 5, "d", None


class Layers:
    layers = tuple(range(LAYERS))


class Grid:
    """What a document reads of a grid."""

    site, positions, heads, controls, layers = "resid_post", "all", None, ("random",), Layers()

    def __init__(self, prompts, **changes):
        self.prompts = [Prompt(n) for n in range(prompts)]
        self.__dict__.update(changes)


def made(prompts, *, seed=0, **changes):
    """Cells of a run whose probabilities are drawn, by coordinates and by id."""
    rng = np.random.default_rng(seed)
    grid, cells = Grid(prompts, **changes), {}
    where = [{"baseline": side} for side in ("base", "instruct")]
    heads = [{"head": n} for n in range(3)] if grid.heads == "each" else [{}]
    for direction, layer, control, head in itertools.product(
        DIRECTIONS, range(LAYERS), (None, "random"), heads
    ):
        place = {"direction": direction, "layer": layer, "position": None, **head}
        where.append(place | ({} if control is None else {"control": control}))
    for n, coords in itertools.product(range(prompts), where):
        values = patch_docs.values(float(rng.uniform(0.05, 0.95)))
        cells[f"{n} {coords}"] = (coords | {"prompt": n}, values, 0.1)
    return grid, cells


def document(grid, cells):
    about = {"pair": "a", "display": "A", "n_layers": LAYERS, "run": "r", "run_id": "i"}
    return patch_document.document(grid, cells, headline="x", strings={}, about=about)


def values_at(cells, **wanted):
    """Values per prompt of the cells with these coordinates."""
    found = {}
    for coords, values, _ in cells.values():
        rest = {k: v for k, v in coords.items() if k not in ("prompt", "position")}
        if rest == wanted:
            found[coords["prompt"]] = values
    return found


def enumerated(changes):
    sums = [
        abs(math.fsum(s * c for s, c in zip(signs, changes, strict=True)))
        for signs in itertools.product([1, -1], repeat=len(changes))
    ]
    return sum(one >= abs(math.fsum(changes)) - 1e-12 for one in sums) / len(sums)


def corrected(p):
    """Benjamini and Hochberg's q of each p, by their definition."""
    return [min(1, min(b * len(p) / sum(c <= b for c in p) for b in p if b >= a)) for a in p]


@pytest.mark.parametrize("control", [None, "random"])
@pytest.mark.parametrize("prompts", [2, 4, 7])
def test_every_layer_has_the_p_and_q_of_a_plain_enumeration(prompts, control):
    grid, cells = made(prompts)
    doc = document(grid, cells)
    for direction, name in itertools.product(DIRECTIONS, TESTED):
        found = (doc if control is None else doc["controls"][control])[direction]
        own = values_at(cells, baseline=recipient(direction))
        p = []
        for layer in range(LAYERS):
            coords = {"direction": direction, "layer": layer}
            at = values_at(cells, **coords, **({"control": control} if control else {}))
            changes = [at[n][SOURCE[name]] - own[n][SOURCE[name]] for n in range(prompts)]
            assert found[str(layer)][name] == pytest.approx(np.mean(changes), abs=1e-12)
            p.append(enumerated(changes))
        assert [found[str(i)][f"{name}_p"] for i in range(LAYERS)] == pytest.approx(p)
        assert [found[str(i)][f"{name}_q"] for i in range(LAYERS)] == pytest.approx(corrected(p))
    assert doc["sign_flips"]["smallest_p"] == 2 / 2**prompts
    assert doc["sign_flips"]["exact"]


def test_the_cells_of_all_heads_are_corrected_together():
    doc = document(*made(6, heads="each"))
    for direction in DIRECTIONS:
        parts = [c for cell in doc[direction].values() for c in cell["by_head"].values()]
        assert len(parts) == 3 * LAYERS
        q = corrected([c["effect_p"] for c in parts])
        assert [c["effect_q"] for c in parts] == pytest.approx(q)
        for cell in doc[direction].values():
            strongest = cell["by_head"][str(cell["strongest"])]
            assert cell["effect_q"] == strongest["effect_q"]


def test_a_failed_cell_leaves_its_prompt_out():
    grid, cells = made(5)
    gone = next(
        key for key, (c, _, _) in cells.items()
        if c["prompt"] == 3 and c.get("layer") == 2 and c["direction"] == DIRECTIONS[0]
        and "control" not in c
    )  # fmt: skip
    del cells[gone]
    doc = document(grid, cells)
    own = values_at(cells, baseline=recipient(DIRECTIONS[0]))
    at = values_at(cells, direction=DIRECTIONS[0], layer=2)
    changes = [at[n]["log_odds"] - own[n]["log_odds"] for n in (0, 1, 2, 4)]
    assert doc[DIRECTIONS[0]]["2"]["effect_log_odds_p"] == enumerated(changes)


def test_one_prompt_has_no_p_and_its_tables_no_column():
    doc = document(*made(1))
    assert doc["sign_flips"] is None
    assert how_tested(doc) == ""
    assert not any("_p" in key[-2:] or "_q" in key[-2:] for key in doc[DIRECTIONS[0]]["0"])
    assert not [name for name in layer_grid(doc, DIRECTIONS[0]).head if name.startswith("p (")]


@pytest.mark.parametrize("heads", [None, "each"])
def test_tables_show_p_and_q_and_how_small_p_can_be(heads):
    doc = document(*made(3, heads=heads))
    grid = layer_grid(doc, DIRECTIONS[0])
    at = grid.head.index("p (q)")
    assert grid.head[at + 1] == "p (q), log-odds"
    assert all(len(row) == len(grid.head) for row in grid.rows)
    assert all(float(row[at].split()[0]) >= 0.25 for row in grid.rows)
    assert "with 3 prompts no p can be below 0.25" in how_tested(doc)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(final_table(doc))
    shown = console.export_text()
    assert " q " in shown
    assert "p >= 0.25" in shown
