"""A model divided over several processes computes what one process computes, or says why not.

The ranks are processes on this machine that the ring backend of MLX connects; the models are tiny.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from zygote import NO_FIGURES

from mlxroles.errors import ModelError
from mlxroles.models import sharded
from mlxroles.pairs import resolve
from mlxroles.snapshots import read_config
from mlxroles.store.folder import RunFolder

TESTS = Path(__file__).parent
BOUND = 1e-5
LIMIT = 240.0
"""Seconds after which a rank counts as hung; the machine may be busy."""
APART = ("timestamp", "time_s", "seconds", "estimate", "bytes", "run_id", "notes")
"""What two documents of the same numbers may differ in."""
LLAMA = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}


class Ranks:
    """Processes of one group.

    Args:
        zygote: Starts them.
        count: How many.
        words: Of the command line; a list per rank, or one for all.
        folder: Where they run, each with caches of its own.
        code: What they do first.
    """

    def __init__(self, zygote, count, words, folder, code=NO_FIGURES):
        folder.mkdir(parents=True, exist_ok=True)
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports(count)]))
        self.children = []
        for rank in range(count):
            own = words[rank] if words and isinstance(words[0], (list, tuple)) else words
            environ = {
                "MLX_HOSTFILE": str(hosts),
                "MLX_RANK": str(rank),
                "MLXROLES_CACHE": str(folder / f"cache{rank}"),
            }
            first = f"import os\nos.environ |= {environ!r}\n{code}"
            self.children.append(zygote.start(*own, cwd=folder, code=first, name=f"rank{rank}"))

    def end(self):
        """(status, standard output, standard error) of every rank."""
        ended = [child.wait() for child in self.children]
        texts = [(child.out.read_text(), child.err.read_text()) for child in self.children]
        return [(status, *text) for status, text in zip(ended, texts, strict=True)]


def ports(count):
    """Ports that were free a moment ago."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


@pytest.fixture
def command(zygote):
    """Ends of the ranks of one command line."""
    return lambda count, folder, *words: Ranks(zygote, count, words, folder).end()


@pytest.fixture
def alone(zygote):
    """The document of the same command in one process."""

    def run(folder, *words):
        folder.mkdir(parents=True, exist_ok=True)
        words = (*words, "--json", "--plain")
        status, out, err = zygote.run(*words, cwd=folder, code=NO_FIGURES)
        assert status == 0, err
        return json.loads(out)

    return run


def numbers(a, b, path=""):
    """(path, a, b) of all numbers of two documents of one form, times and places left out."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in APART:
                yield from numbers(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for n, pair in enumerate(zip(a, b, strict=True)):
            yield from numbers(*pair, f"{path}/{n}")
    elif isinstance(a, (int, float)) and not isinstance(a, bool):
        yield path, a, b


def error_of(end):
    """The one line that a rank ended in."""
    status, out, err = end
    assert status == 1, (out, err)
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


# --- models -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "names"),
    [
        (2, ["llama", "llama 4-bit", "qwen2", "qwen3"]),
        (2, ["gpt_oss", "deepseek_v3", "qwen3_5"]),
        (2, ["qwen3_moe", "minimax", "step3p5", "kimi_k3"]),
        (4, ["llama 8 heads"]),
    ],
    ids=["dense", "sinks, latent, linear", "experts", "four ranks"],
)
def test_a_divided_model_captures_and_is_edited_like_a_whole_one(count, names, zygote, tmp_path):
    code = f"import rank_child; rank_child.main({names!r})"
    ends = Ranks(zygote, count, [], tmp_path, code).end()
    for rank, (status, out, err) in enumerate(ends):
        assert status == 0, err[-2000:]
        found = json.loads(out)
        assert (found["rank"], found["size"]) == (rank, count)
        for name in names:
            of = found[name]
            assert max(of["captured"].values()) <= BOUND, (name, of["captured"])
            assert max(of["edited"].values()) <= BOUND, (name, of["edited"])
            assert of["blocks"] <= BOUND
            assert of["heads"][1] * count == of["heads"][0]
            assert of["weights"] < 0.5 + 0.5 / count  # the tiny ones are half embedding


def test_the_bytes_that_one_process_holds_are_known_before_loading():
    folder = resolve("tiny/base")
    whole = sharded.held_bytes(folder, 1)
    assert whole / 2 < sharded.held_bytes(folder, 2) < 0.7 * whole


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        ({"model_type": "gpt2"}, 2, "mlx_lm cannot divide gpt2"),
        ({"model_type": "gemma2"}, 2, "mlx_lm cannot divide gemma2"),
        (LLAMA, 3, "llama has 4 heads (num_attention_heads), which do not divide over 3"),
        (LLAMA, 4, "llama has 2 heads (num_key_value_heads), which do not divide over 4"),
        (LLAMA | {"model_file": "x.py"}, 2, "brings its own Python file"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name_from_its_config(config, size, said):
    with pytest.raises(ModelError, match=r"^--shard: ") as caught:
        sharded.check(config, size)
    assert said in str(caught.value)


def test_latent_attention_has_as_many_keys_as_queries():
    config = {"model_type": "deepseek_v3", "num_attention_heads": 4, "num_key_value_heads": 1}
    sharded.check(config | {"kv_lora_rank": 32}, 2)
    sharded.check(read_config(resolve("tiny/base")), 4)


# --- studies ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("patch", "--pair", "tiny", "--layers", "2-4"),
        ("patch", "--pair", "tiny", "--layers", "1,4", "--site", "z", "--heads", "each",
         "--controls", "random", "--positions", "last"),
        ("patch", "--pair", "tiny", "--layers", "3", "--site", "k", "--heads", "0,3"),
        ("patch", "--pair", "tiny", "--layers", "3", "--site", "pattern", "--read", "donor-head"),
        ("probe", "--pair", "tiny", "--no-tools"),
    ],
    ids=["stream", "single heads", "keys", "pattern", "probe"],
)  # fmt: skip
def test_a_study_finds_what_it_finds_in_one_process(words, command, alone, tmp_path):
    first, second = command(2, tmp_path / "two", *words, "--shard", "--json", "--plain")
    assert first[0] == 0, first[2]
    assert second == (0, "", "")
    whole = alone(tmp_path / "one", *words)
    compared = list(numbers(json.loads(first[1]), whole))
    assert len(compared) > 50
    assert "each model is divided over 2 processes" in json.loads(first[1])["notes"]
    largest = max(abs(b) for path, _, b in compared if "logit_diff" in path)
    for path, a, b in compared:
        assert a == pytest.approx(b, rel=BOUND, abs=BOUND * largest), path


@pytest.mark.slow
def test_a_capture_and_entropies_are_those_of_one_process(command, alone, tmp_path):
    words = ["capture", "--model", "tiny/base", "--prompt", "notepad", "--keep"]
    words += ["resid_post,attn_out,q,v,z,pattern,entropy,logits", "--plain"]
    ends = command(2, tmp_path, *words, "--shard", "--out", "two.h5")
    assert [end[0] for end in ends] == [0, 0], ends
    assert ends[1][1:] == ("", "")
    alone(tmp_path, *words[:-1], "--out", "one.h5")
    with h5py.File(tmp_path / "two.h5") as two, h5py.File(tmp_path / "one.h5") as one:
        assert two.keys() == one.keys()
        for name in words[6].split(","):
            a, b = np.nan_to_num(two[name][()]), np.nan_to_num(one[name][()])
            assert np.abs(a - b).max() <= BOUND * np.abs(b).max(), name
    # the file is there: nobody computes anything, and nobody waits for anyone
    again = command(2, tmp_path, *words, "--shard", "--out", "two.h5")
    assert [end[0] for end in again] == [0, 0], again
    entropy = ["entropy", "--model", "tiny/base", "--prompts-per-category", "2", "--plain"]
    ends = command(2, tmp_path, *entropy, "--shard", "--json")
    assert [end[0] for end in ends] == [0, 0], ends
    assert "entropy" in json.loads(ends[0][1])["run"]


# --- ends -------------------------------------------------------------------------------------

LONG = ["patch", "--pair", "tiny", "--layers", "3-4", "--site", "z", "--heads", "each"]
LONG += ["--shard", "--plain"]


def begun(ranks, folder, cells=6):
    """Waits until some cells of the run are stored."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        for journal in folder.glob("results/*/*/cells.jsonl"):
            if journal.read_bytes().count(b"\n") >= cells:
                return
        told = [child.err.read_text() for child in ranks.children if child.err.exists()]
        assert not any("error: " in text for text in told)
        time.sleep(0.02)
    raise AssertionError("no cells were stored")


def cells_of(folder):
    """Values of the stored cells of the one run below a folder, by id."""
    [journal] = folder.glob("results/*/*/cells.jsonl")
    return {name: r.values for name, r in RunFolder.read(journal.parent).records().items()}


@pytest.mark.slow
def test_a_signal_to_the_first_rank_ends_all_and_the_same_command_goes_on(
    zygote, command, tmp_path
):
    ranks = Ranks(zygote, 2, LONG, tmp_path)
    begun(ranks, tmp_path)
    ranks.children[1].send(signal.SIGINT)  # a terminal sends it to all of them
    ranks.children[0].send(signal.SIGINT)
    first, second = ranks.end()
    assert first[0] == 130, first
    assert "stopped by SIGINT" in first[2]
    assert second == (0, "", "")
    stored = cells_of(tmp_path)
    ends = command(2, tmp_path, *LONG)
    assert [end[0] for end in ends] == [0, 0], ends
    whole = cells_of(tmp_path)
    assert 6 <= len(stored) < len(whole)
    command(2, tmp_path / "undisturbed", *LONG)
    assert whole == cells_of(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_with_one_line(victim, zygote, tmp_path):
    ranks = Ranks(zygote, 2, LONG, tmp_path)
    begun(ranks, tmp_path)
    ranks.children[victim].send(signal.SIGKILL)
    killed = time.monotonic()
    ends = ranks.end()
    assert time.monotonic() - killed < 60
    assert ends[victim][0] == -signal.SIGKILL
    line = error_of(ends[1 - victim])
    assert "another process that holds a part of the model is gone" in line
    assert ("rank 1: " in line) == (victim == 0)


LEFT_ALONE = """
import os, time
from mlxroles.errors import RanksError
from mlxroles.ranks import Ranks
ranks = Ranks.start()
ranks.exchange()
if not ranks.leads:
    os._exit(0)
time.sleep(0.5)
try:
    ranks.exchange()
except RanksError as error:
    print(error)
"""


def test_a_rank_that_is_left_alone_hears_of_it_and_reads_no_old_memory(zygote, tmp_path):
    (_, out, err), _ = Ranks(zygote, 2, [], tmp_path, LEFT_ALONE).end()
    assert out.startswith("another process that holds a part of the model is gone"), err


QUEUED = """
import os, time
from mlxroles import ranks
from mlxroles.backend import mx
ranks.PATIENCE = 0.5
own = ranks.Ranks.start()
own.exchange()
time.sleep(0.5)
if not own.leads:
    os._exit(0)
array = mx.ones((1, 4))
for _ in range(6):
    array = mx.distributed.all_sum(2 * array, group=own.group)
try:
    mx.eval(array)
except RuntimeError:
    time.sleep(60)
"""


def test_what_is_queued_behind_a_lost_connection_does_not_wait_for_ever(zygote, tmp_path):
    (status, _, err), _ = Ranks(zygote, 2, [], tmp_path, QUEUED).end()
    assert status == 1
    assert "error: another process that holds a part of the model is gone; what is" in err


@pytest.mark.slow
def test_ranks_that_were_asked_for_different_things_do_not_begin(command, tmp_path):
    words = ["probe", "--pair", "tiny", "--shard", "--prompt"]
    first, second = command(2, tmp_path, [*words, "one text"], [*words, "another"])
    assert "rank 1 would run something else" in error_of(first)
    assert second[0] == 1


@pytest.mark.slow
def test_an_error_of_one_rank_is_told_by_the_first(command, tmp_path):
    words = ["probe", "--pair", "tiny", "--shard"]
    other = ["probe", "--base", "nowhere", "--instruct", "x", "--shard"]
    first, second = command(2, tmp_path, words, other)
    assert error_of(first).startswith("error: rank 1: ")
    assert second[0] == 1
    assert second[2] == ""


@pytest.mark.slow
def test_heads_that_do_not_divide_are_refused_once(command, tmp_path):
    ends = command(3, tmp_path, "patch", "--pair", "tiny", "--shard")
    assert "which do not divide over 3 processes" in error_of(ends[0])
    assert [end[2] for end in ends[1:]] == ["", ""]
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_attribution_is_refused_once(command, tmp_path):
    words = ["patch", "--pair", "tiny", "--method", "attribution", "--shard"]
    ends = command(2, tmp_path, *words)
    assert "--shard does not go with --method attribution" in error_of(ends[0])
    assert ends[1][2] == ""


def test_one_process_alone_has_nothing_to_divide(call):
    status, _, err = call("patch", "--pair", "tiny", "--shard")
    assert status == 1
    assert "this is the only one" in err


@pytest.mark.slow
def test_a_plan_counts_the_memory_of_one_rank(command, alone, tmp_path):
    words = ["patch", "--pair", "tiny", "--dry-run"]
    first, second = command(2, tmp_path, *words, "--shard", "--json")
    assert second == (0, "", "")
    plan, whole = json.loads(first[1]), alone(tmp_path, *words)
    assert plan["memory_bytes"] < whole["memory_bytes"]


@pytest.mark.slow
def test_the_launcher_of_mlx_starts_the_ranks(tmp_path):
    launcher = Path(sys.executable).with_name("mlx.launch")
    port = str(ports(1)[0])
    words = ["-m", "mlxroles.cli", "probe", "--pair", "tiny", "--shard", "--json", "--dry-run"]
    start = [launcher, "-n", "2", "--backend", "ring", "--starting-port", port]
    environ = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [*map(str, start), sys.executable, *words],
        cwd=tmp_path, env=environ, stdin=subprocess.PIPE, capture_output=True, text=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert (found["schema"], found["cells"]) == ("mlxroles/plan/1", 2)
