"""The example scripts run on the tiny pair, and what they say is so."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "experiments"
EXAMPLES = {"induction", "steering", "lens", "components"}


def example(name):
    """The script's ``main``."""
    return runpy.run_path(str(FOLDER / f"example_{name}.py"), run_name="example")["main"]


def test_every_example_is_executed_here():
    assert {path.stem.removeprefix("example_") for path in FOLDER.glob("example_*.py")} == EXAMPLES


def test_induction_heads_make_the_repetition(capsys):
    found = example("induction")()
    assert found["without"] < 0.1 * found["whole"]
    assert min(found["chance"]) > 0.7 * found["whole"]
    assert found["p"] == pytest.approx(1 / 21)
    assert f"without the {len(found['heads'])} induction heads" in capsys.readouterr().out


def test_a_direction_switches_the_tool_decision(capsys):
    found = example("steering")()
    assert found["plain"] < 0.05 < 0.8 < found["pushed"]
    assert max(found["chance"]) < 0.1
    assert found["blocked"] < 0.7 < 0.95 < min(found["kept"])
    assert found["said"].startswith("<tool_call>")
    assert "projected out" in capsys.readouterr().out


def test_the_lens_and_the_parts_end_in_the_answer(capsys, tmp_path):
    figure = tmp_path / "parts.png"
    found = example("lens")("tiny/instruct", str(figure))
    for title, parts in found["parts"].items():
        reading = found["readings"][title]
        ends = reading.end_logits[[found["tag"], found["instead"]]]
        assert parts.total == pytest.approx(float(ends[0] - ends[1]), abs=1e-4)
        assert parts.total == pytest.approx(parts.values.sum(), abs=1e-9)
    assert found["parts"]["offered"].total > 0 > found["parts"]["not offered"].total
    offered = np.exp(found["readings"]["offered"].asked_log_prob[:, 0, 0])
    assert offered[-1] > 0.9 > 0.1 > offered[0]
    assert figure.stat().st_size > 10_000
    assert "all together" in capsys.readouterr().out


def test_the_parts_of_a_toy_are_recovered_from_every_start(capsys):
    found = example("components")(3)
    assert len(found) == 3
    assert min(found) > 0.99
    out = capsys.readouterr().out
    for control in ("singular values", "without minimality"):
        reached = [float(number) for number in re.findall(rf"{control} (\d\.\d+)", out)]
        assert len(reached) == 3
        assert max(reached) < 0.8
