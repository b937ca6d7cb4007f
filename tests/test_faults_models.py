"""Models that are damaged, changed or do not fit together: one line before anything is written."""

import json
import math
import shutil
import struct
from pathlib import Path

import pytest
from run_contents import cells, one_line

import mlxroles
from mlxroles.studies import patch_sweep, place
from mlxroles.versions import versions

TINY = Path(mlxroles.__file__).parent / "data" / "tiny"
TENSOR = "model.layers.3.mlp.down_proj.weight"
QUICK = ["--layers", "2", "--controls", "none", "--plain", "--json"]


@pytest.fixture(autouse=True)
def few_figures(monkeypatch):
    monkeypatch.setattr(patch_sweep, "patch_figures", lambda doc, folder: {})
    monkeypatch.setattr(patch_sweep, "svg", lambda doc, path, *, title: None)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A copy of the embedded pair: the two folders."""
    monkeypatch.chdir(tmp_path)
    return {side: shutil.copytree(TINY / side, tmp_path / side) for side in ("base", "instruct")}


def patch(pair, *more):
    sides = [word for side, folder in pair.items() for word in (f"--{side}", str(folder))]
    return ["patch", *sides, *QUICK, *more]


def refused(found, *words):
    status, out, err = found
    assert (status, out) == (1, ""), err
    line = one_line(err)
    for word in words:
        assert str(word) in line
    return line


def weights(folder):
    return folder / "model.safetensors"


def edited(file, change):
    """Rewrites a weight file with the bytes of one tensor changed."""
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    body = bytearray(data[8 + size :])
    first, last = header[TENSOR]["data_offsets"]
    assert header[TENSOR]["dtype"] == "F32"
    body[first:last] = change(bytes(body[first:last]))
    file.write_bytes(data[: 8 + size] + bytes(body))


def with_value(value):
    return lambda file: edited(file, lambda raw: raw[:40] + struct.pack("<f", value) + raw[44:])


def cut(n):
    return lambda file: file.write_bytes(file.read_bytes()[:n])


def with_header(change):
    def rewrite(file):
        data = file.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return rewrite


UNREADABLE = {
    "truncated by a byte": cut(-1),
    "truncated by half": cut(2_000_000),
    "truncated in the header": cut(100),
    "empty": cut(0),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a bit of the header's length": lambda file: file.write_bytes(
        bytes([file.read_bytes()[0]]) + b"\x10" + file.read_bytes()[2:]
    ),
    "a page of HTML": lambda file: file.write_bytes(b"<!DOCTYPE html>" * 9),
    "a shape beyond the file": with_header(lambda h: h[TENSOR].update(shape=[2**20, 2**20])),
    "offsets beyond the file": with_header(lambda h: h[TENSOR].update(data_offsets=[0, 2**40])),
    "an unknown type": with_header(lambda h: h[TENSOR].update(dtype="F3")),
}
NUMBERS = {
    "NaN": (with_value(math.nan), "1 of "),
    "inf": (with_value(math.inf), "1 of "),
    "minus inf": (with_value(-math.inf), "1 of "),
    "a huge number": (with_value(1e30), "a weight of magnitude 1e+30"),
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_weights_that_cannot_be_read_are_named_before_anything_is_written(
    call, pair, tmp_path, damage
):
    UNREADABLE[damage](weights(pair["instruct"]))
    refused(call(*patch(pair, "--out", "run")), weights(pair["instruct"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", NUMBERS)
def test_impossible_numbers_are_named_with_file_and_tensor(call, pair, tmp_path, damage):
    change, words = NUMBERS[damage]
    change(weights(pair["base"]))
    refused(call(*patch(pair, "--out", "run")), weights(pair["base"]), TENSOR, words)
    assert not (tmp_path / "run").exists()
    # the entropy study and single probes ask the same
    one = ["probe", "--model", pair["base"], "--token-ids", "5", "--prompt", "a", "--out", "p"]
    refused(call(*one), TENSOR)
    assert not (tmp_path / "p").exists()


def test_weights_of_zeros_are_numbers_and_nothing_is_divided_by_them(call, pair, tmp_path):
    file = weights(pair["base"])
    edited(file, lambda raw: bytes(len(raw)))
    status, out, _ = call(*patch(pair, "--out", "run"))
    assert status == 0
    json.loads(out, parse_constant=lambda text: pytest.fail(text))


# --- changed in the night -------------------------------------------------------------------------


def rename_token(folder):
    file = folder / "tokenizer.json"
    doc = json.loads(file.read_text())
    vocab = doc["model"]["vocab"]
    one, two = list(vocab)[300:302]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    file.write_text(json.dumps(doc))


CHANGES = {
    "a weight": lambda folder: with_value(0.25)(weights(folder)),
    "the config": lambda folder: configured(folder, rms_norm_eps=1e-4),
}


def configured(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_changes_between_start_and_resume(call, pair, tmp_path, change):
    assert call(*patch(pair, "--out", "run"))[0] == 0
    status, out, _ = call(*patch(pair))
    first = Path(json.loads(out)["run"])
    assert (status, first.parent.parent) == (0, tmp_path / "results")
    stored = cells(tmp_path / "run")
    CHANGES[change](pair["base"])
    # the same folder: refused, with the field
    refused(call(*patch(pair, "--out", "run")), "models.base.sha256 is", "--out", "--fresh")
    assert cells(tmp_path / "run") == stored
    # below results/: another run beside the first
    status, out, _ = call(*patch(pair))
    second = Path(json.loads(out)["run"])
    assert (status, second.parent) == (0, first.parent)
    assert second != first
    assert cells(first) == stored != cells(second)
    # on the user's word: the finished cells stay, and the manifest says so
    assert call(*patch(pair, "--out", "run", "--allow-drift", "models.base"))[0] == 0
    (drift,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["drift"]
    assert drift["field"] == "models.base.sha256"
    assert cells(tmp_path / "run") == stored


def test_another_mlx_goes_on_with_the_run_records_it_and_says_so(call, pair, tmp_path, monkeypatch):
    assert call(*patch(pair))[0] == 0
    found = versions() | {"mlx": "9.9", "mlx-lm": "8.8"}
    monkeypatch.setattr(place, "versions", lambda: found)
    status, out, err = call(*patch(pair))
    (run,) = tmp_path.glob("results/*/*")
    assert (status, Path(json.loads(out)["run"])) == (0, run)
    assert "4 stored earlier" in err
    for name, version in (("mlx", "9.9"), ("mlx-lm", "8.8")):
        assert f"begun with {name} " in err
        assert f'goes on with "{version}"' in err
    drift = json.loads((run / "manifest.json").read_text())["drift"]
    assert [(d["field"], d["now"]) for d in drift] == [
        ("computed_by.mlx", "9.9"),
        ("computed_by.mlx-lm", "8.8"),
    ]


def test_a_tokenizer_that_changes_on_both_sides_is_another_run(call, pair, tmp_path):
    ids = ["--prompt-ids", "1,5,6", "--token-ids", "7"]
    assert call(*patch(pair, "--out", "run", *ids))[0] == 0
    for folder in pair.values():
        rename_token(folder)
    line = refused(call(*patch(pair, "--out", "run", *ids)), "holds another run")
    assert "tokenizer" in line or "sha256" in line


# --- pairs that do not fit ------------------------------------------------------------------------


def begin(folder):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bos_token": "<|user|>"}))


def template(folder):
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        file = folder / name
        if file.is_file() and name.endswith("json"):
            doc = json.loads(file.read_text()) | {"chat_template": "{{ messages[0]['content'] }}!"}
            file.write_text(json.dumps(doc))


MISMATCHES = {
    "tokenizer": (rename_token, ["different tokenizers"]),
    "begin token": (begin, ["begin token: '<|bos|>' (id 0) and '<|user|>' (id 3)"]),
    "template": (template, ["different templates", "--template instruct"]),
    "vocabulary": (lambda f: configured(f, vocab_size=9), ["base has vocabulary 9, instruct"]),
    "layers": (lambda f: configured(f, num_hidden_layers=5), ["base has layers 5, instruct 6"]),
    "width": (lambda f: configured(f, hidden_size=8), ["base has d_model 8, instruct"]),
    "no layers": (lambda f: configured(f, num_hidden_layers=None), ["layers"]),
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_a_pair_that_does_not_fit_names_both_values(call, pair, tmp_path, mismatch):
    change, words = MISMATCHES[mismatch]
    change(pair["base"])
    refused(call(*patch(pair, "--out", "run")), *words)
    assert not (tmp_path / "run").exists()


def test_heads_that_differ_are_refused_where_heads_are_patched(call, pair, tmp_path):
    configured(pair["base"], num_attention_heads=2, num_key_value_heads=1, head_dim=None)
    line = refused(call(*patch(pair, "--out", "run", "--site", "z")), "heads")
    assert "base has" in line
    assert not (tmp_path / "run").exists()


def test_models_of_different_types_are_named_in_the_notes(call, pair, tmp_path):
    configured(pair["base"], quantization={"group_size": 64, "bits": 4})
    status, _, err = call(*patch(pair, "--dry-run"))
    assert status == 0, err
    status, _, err = call(*patch(pair, "--out", "run"))
    assert status in (0, 1)
    assert "quantization" in err or "cannot load it" in err


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "."])
def test_a_model_folder_that_loses_a_file(call, pair, tmp_path, gone):
    assert call(*patch(pair, "--out", "run"))[0] == 0
    target = pair["instruct"] / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    refused(call(*patch(pair, "--out", "run")), pair["instruct"])
    assert len(cells(tmp_path / "run")) == 4


def test_a_weight_file_that_is_replaced_while_the_run_goes_on_does_not_mix(
    call, pair, tmp_path, monkeypatch
):
    """What was hashed is what was loaded: new content shows as another model at the next start."""
    from mlxroles.studies.patch_run import PatchWork

    real = PatchWork.compute

    def compute(work, batch):
        file = weights(pair["base"])
        shutil.copyfile(TINY / "instruct" / "model.safetensors", file.with_name("new"))
        file.with_name("new").rename(file)
        return real(work, batch)

    whole = tmp_path / "whole"
    assert call(*patch(pair, "--out", whole))[0] == 0
    monkeypatch.setattr(PatchWork, "compute", compute)
    assert call(*patch(pair, "--out", "run"))[0] == 0
    assert cells(tmp_path / "run") == cells(whole)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(call(*patch(pair, "--out", "run")), "models.base.sha256 is")
