"""Ids of runs and cells, and the grids that a user types."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxroles.errors import SpecError
from mlxroles.plan import (
    PLAN_VERSION,
    canonical_json,
    cell_id,
    parse_layers,
    parse_positions,
    run_id,
)


def test_run_id_is_pinned():
    identity = {"pair": "tiny", "grid": {"layers": [2, 3], "prompt": "ü\ud800"}, "seed": 0}
    assert PLAN_VERSION == 1
    assert run_id(identity) == "ceca3c9a7861"


def test_run_id_ignores_key_order_and_tuples_but_no_value():
    one = run_id({"a": 1, "b": {"c": (1, 2), "d": 3}})
    assert one == run_id({"b": {"d": 3, "c": [1, 2]}, "a": 1})
    assert one != run_id({"b": {"d": 3, "c": [2, 1]}, "a": 1})
    assert re.fullmatch("[0-9a-f]{12}", one)


def test_an_identity_with_nan_is_a_programmers_mistake():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": float("nan")})


@pytest.mark.parametrize(
    ("coords", "expected"),
    [
        (
            {"direction": "base_to_instruct", "site": "resid_post", "layer": 7, "position": "all"},
            "base_to_instruct/resid_post/L07/all",
        ),
        (
            {
                "control": "random",
                "prompt": 2,
                "position": 12,
                "head": 3,
                "layer": 101,
                "site": "z",
                "direction": "instruct_to_base",
            },
            "instruct_to_base/z.H03/L101/P012/p002/control=random",
        ),
        ({"model": "base", "prompt": "notepad", "layer": None}, "base/prompt=notepad"),
        ({"head": 1, "scale": 0.5, "b": 1}, "H01/b=1/scale=0.5"),
        ({"position": "4-9"}, "4-9"),
        ({}, ""),
    ],
)
def test_cell_ids_are_readable(coords, expected):
    assert cell_id(coords) == expected


def test_cell_ids_of_hostile_names_stay_apart_and_hold_no_path():
    names = ["a/b", "a b", "A-b", "../../x", "\0", "\ud800"]
    ids = {cell_id({"prompt": name}) for name in names}
    assert len(ids) == len(names)
    assert not any("/" in one or ".." in one for one in ids)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        (None, tuple(range(8))),
        ("all", tuple(range(8))),
        ("2-4", (2, 3, 4)),
        ("7", (7,)),
        ("4,2", (2, 4)),
        (" 0 , 5-7 ", (0, 5, 6, 7)),
        ("3-3", (3,)),
    ],
)
def test_layers(text, layers):
    grid = parse_layers(text, 8)
    assert (tuple(grid), len(grid), grid.n_layers) == (layers, len(layers), 8)
    assert layers[0] in grid
    assert 99 not in grid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("40", "layer 40 is outside 0..31"),
        ("25-40", "layer 40 is outside 0..31"),
        ("32", "layer 32 is outside 0..31"),
        ("9-3", "layers 9-3 are reversed: write 3-9"),
        ("-1", "layers '-1' cannot be read"),
        ("", "layers '' cannot be read"),
        ("1,,2", "cannot be read"),
        ("1-2-3", "cannot be read"),
        ("0-31:2", "cannot be read"),
        ("all\x1b[2J", r"'all\\x1b\[2J' cannot be read"),
        ("٣", "cannot be read"),
        ("9" * 5000, "cannot be read"),
        ("1.5", "within 0..31"),
        ("2,1-3", "layer 2 is named twice in '2,1-3'"),
    ],
)
def test_wrong_layers_are_refused_with_the_valid_range(text, message):
    with pytest.raises(SpecError, match=message.replace("..", r"\.\.")):
        parse_layers(text, 32)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1))
def test_layers_and_positions_survive_their_own_text(numbers):
    grid = parse_layers(",".join(map(str, numbers)), 41)
    assert list(grid) == sorted(numbers)
    assert parse_layers(str(grid), 41) == grid
    assert parse_positions(str(grid), 41).positions == grid.layers


def test_positions():
    assert parse_positions("all", 3).positions == (0, 1, 2)
    assert parse_positions("last", 3).positions == (2,)
    assert parse_positions(" each ", 3).positions == (0, 1, 2)
    assert parse_positions("1-2", 3).positions == (1, 2)
    shown = [str(parse_positions(text, 3)) for text in ("all", "last", "each", "1-2")]
    assert shown == ["all", "last", "each", "1-2"]


@pytest.mark.parametrize("text", ["3", "0-3", "first", "", "2-1", "-1"])
def test_wrong_positions_are_refused(text):
    with pytest.raises(SpecError, match="position"):
        parse_positions(text, 3)


def test_an_empty_model_or_prompt_is_a_programmers_mistake():
    with pytest.raises(ValueError, match="at least one layer"):
        parse_layers("1", 0)
    with pytest.raises(ValueError, match="at least one token"):
        parse_positions("1", 0)
