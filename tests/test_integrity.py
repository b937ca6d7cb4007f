"""Damaged, incomplete or mismatched model folders are refused in one line, before anything runs."""

import hashlib
import json
import os
import re
import struct
from pathlib import Path

import mlx_lm.models.llama as llama
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_models import LLAMA, same, tiny_llama, tokens

from mlxroles import cache
from mlxroles.backend import mx, nn
from mlxroles.errors import ModelError, PairError
from mlxroles.models import integrity
from mlxroles.models.load import load

CONFIG = LLAMA | {"rope_theta": 10000.0, "head_dim": 8, "hidden_act": "silu"}
WEIGHT = "model.layers.1.mlp.down_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "cache"))


def weights_of(module):
    return dict(tree_flatten(module.parameters()))


def save(folder, weights=None, config=None, *, shards=1):
    """A model folder as mlx_lm writes it."""
    folder.mkdir(exist_ok=True)
    weights = weights_of(tiny_llama(0)) if weights is None else weights
    names = sorted(weights)
    for i in range(shards):
        name = "model" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}"
        part = {n: weights[n] for n in names[i::shards]}
        mx.save_safetensors(str(folder / f"{name}.safetensors"), part, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def refusal(folder, **options):
    """The one line with which a folder is refused."""
    with pytest.raises(ModelError) as caught:
        load(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) in text
    return text


def place_of(file, tensor):
    """Where a tensor's bytes begin in a safetensors file."""
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]


def overwrite(file, offset, data):
    content = bytearray(file.read_bytes())
    content[offset : offset + len(data)] = data
    file.write_bytes(content)


def test_whole_folder_loads_and_computes_what_the_module_computes(tmp_path):
    model = load(save(tmp_path / "whole"))
    assert (model.n_layers, model.n_heads, model.n_kv_heads, model.vocab) == (4, 4, 2, 64)
    assert (model.d_model, model.d_head, model.dtype) == (32, 8, mx.float32)
    x = tokens(1, 7)
    assert same(model.run(x).logits, tiny_llama(0)(x))
    assert same(load(save(tmp_path / "shards", shards=3)).run(x).logits, model.run(x).logits)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_folder_loads(tmp_path, bits):
    module = tiny_llama(0, hidden_size=64, intermediate_size=64)
    nn.quantize(module, group_size=32, bits=bits)
    told = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    config = CONFIG | told | {"quantization": {"group_size": 32, "bits": bits}}
    model = load(save(tmp_path / "quantised", weights_of(module), config))
    x = tokens(1, 7)
    assert same(model.run(x).logits, module(x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -2e4])
@pytest.mark.parametrize("tensor", [WEIGHT, NORM])
def test_impossible_numbers_name_the_file_and_the_tensor(tmp_path, value, tensor):
    folder = save(tmp_path / "damaged", shards=2)
    file = next(f for f in folder.glob("*.safetensors") if tensor in mx.load(str(f)))
    overwrite(file, place_of(file, tensor) + 20, struct.pack("<f", value))
    text = refusal(folder)
    assert str(file) in text
    assert tensor in text
    found = f"magnitude {abs(value):.3g}" if np.isfinite(value) else "1 of .* values are NaN or inf"
    assert re.search(found.replace("+", r"\+"), text)
    assert load(folder, scan=False).n_layers == 4


def test_a_single_flipped_exponent_bit_is_found(tmp_path):
    folder = save(tmp_path / "flipped")
    file = folder / "model.safetensors"
    offset = place_of(file, WEIGHT) + 4 * 10 + 3
    overwrite(file, offset, bytes([file.read_bytes()[offset] ^ 0x40]))
    assert WEIGHT in refusal(folder)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_scanned_too(tmp_path, dtype):
    module = tiny_llama(0)
    module.set_dtype(dtype)
    assert load(save(tmp_path / "whole", weights_of(module))).dtype == dtype
    weights = weights_of(module)
    weights[WEIGHT] = weights[WEIGHT].at[3, 4].add(mx.array(mx.inf, dtype))
    assert f"{WEIGHT}: 1 of 1536 values" in refusal(save(tmp_path / "damaged", weights))


def test_several_damaged_tensors_are_counted(tmp_path):
    weights = {n: w * mx.nan if ".mlp." in n else w for n, w in weights_of(tiny_llama(0)).items()}
    assert "(and 11 more tensors)" in refusal(save(tmp_path / "damaged", weights))


def test_damage_found_once_is_found_again_from_memory(tmp_path, monkeypatch):
    weights = weights_of(tiny_llama(0))
    weights[WEIGHT] = weights[WEIGHT] * mx.nan
    folder = save(tmp_path / "damaged", weights)
    first = refusal(folder)
    monkeypatch.setattr(integrity, "_damage", lambda _: pytest.fail("scanned again"))
    assert refusal(folder) == first


def test_sound_weights_are_scanned_once(tmp_path, monkeypatch):
    folder = save(tmp_path / "whole")
    load(folder)
    monkeypatch.setattr(integrity, "_damage", lambda _: pytest.fail("scanned again"))
    load(folder)
    (folder / "model.safetensors").touch()
    with pytest.raises(pytest.fail.Exception, match="scanned again"):
        load(folder)


def test_stored_constants_may_be_huge(tmp_path):
    file = tmp_path / "model.safetensors"
    name = "gpt_neox.layers.0.attention.masked_bias"
    mx.save_safetensors(str(file), {name: mx.array(-1e9), "whole": mx.ones((2, 2))})
    integrity.scan(tmp_path)
    mx.save_safetensors(str(file), {name: mx.array(mx.nan)})
    with pytest.raises(ModelError, match="masked_bias: 1 of 1 values are NaN"):
        integrity.scan(tmp_path)


DAMAGE = {
    "truncated by a byte": lambda data: data[:-1],
    "truncated by half": lambda data: data[: len(data) // 2],
    "only a header": lambda data: data[:300],
    "a few bytes": lambda data: data[:5],
    "zero length": lambda _: b"",
    "header is no JSON": lambda data: data[:20] + b"}}}}" + data[24:],
    "header is no text": lambda data: data[:20] + b"\xff\xfe\xff" + data[23:],
    "absurd header length": lambda data: b"\xff" * 8 + data[8:],
    "header length past the end": lambda data: struct.pack("<Q", 10**8) + data[8:],
    "no safetensors at all": lambda _: b"<!DOCTYPE html>" * 50,
    "a pointer of Git LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_unreadable_files_are_named(tmp_path, damage, scan):
    folder = save(tmp_path / "damaged", shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    assert str(file) in refusal(folder, scan=scan)


MISMATCHES = {
    "vocabulary": {"vocab_size": 65},
    "more layers": {"num_hidden_layers": 5},
    "fewer layers": {"num_hidden_layers": 3},
    "width": {"hidden_size": 64},
    "heads": {"num_key_value_heads": 4},
    "head width": {"head_dim": 16},
    "hidden width": {"intermediate_size": 40},
    "a key of another type": {"num_hidden_layers": "four"},
}


@pytest.mark.parametrize("mismatch", MISMATCHES)
def test_config_of_another_model_is_refused(tmp_path, mismatch):
    refusal(save(tmp_path / "model", config=CONFIG | MISMATCHES[mismatch]))


def test_missing_and_surplus_tensors_are_refused(tmp_path):
    weights = weights_of(tiny_llama(0))
    kept = {n: w for n, w in weights.items() if n != WEIGHT}
    assert f"Missing 1 parameters: {WEIGHT})" in refusal(save(tmp_path / "missing", kept))
    extra = {"model.layers.9.extra": mx.zeros((2,))}
    assert "not in model: model.layers.9.extra)" in refusal(
        save(tmp_path / "more", weights | extra)
    )


def test_unknown_architecture_is_refused(tmp_path):
    text = refusal(save(tmp_path / "model", config=CONFIG | {"model_type": "nonesuch"}))
    assert "nonesuch" in text


def test_brought_code_runs_only_when_trusted(tmp_path):
    folder = save(tmp_path / "model", config=CONFIG | {"model_file": "brought.py"})
    source = (
        Path(llama.__file__).read_text(encoding="utf-8").replace("from .", "from mlx_lm.models.")
    )
    marker = tmp_path / "ran"
    code = f"{source}\nimport pathlib\npathlib.Path({str(marker)!r}).touch()\n"
    (folder / "brought.py").write_text(code)
    text = refusal(folder)
    assert "brought.py" in text
    assert "--trust-remote-code" in text
    assert not marker.exists()
    model = load(folder, trust_remote_code=True)
    assert marker.exists()
    x = tokens(1, 5)
    assert same(model.run(x, keep=["pattern"]).logits, tiny_llama(0)(x))
    assert any("not checked" in warning for warning in model.warnings)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "weights.npz"])
def test_other_formats_are_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / name).write_bytes(b"\x80\x04.")
    text = refusal(folder)
    assert name in text
    assert "safetensors" in text


def test_missing_shard_is_refused(tmp_path):
    folder = save(tmp_path / "model", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(folder)


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises((ModelError, PairError), match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.fixture
def readings(monkeypatch):
    """Files that were read to be hashed."""
    read, real = [], hashlib.file_digest

    def digest(file, name):
        read.append(file.name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return read


def test_hash_is_remembered_until_the_file_is_written_to(tmp_path, readings):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    want = hashlib.sha256(b"weights").hexdigest()
    assert integrity.file_hash(file) == integrity.file_hash(file) == want
    assert len(readings) == 1
    before = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert integrity.file_hash(file) == hashlib.sha256(b"WEIGHTS").hexdigest()
    file.write_bytes(b"WEIGHTS!")
    assert integrity.file_hash(file) == hashlib.sha256(b"WEIGHTS!").hexdigest()
    assert len(readings) == 3


def test_another_file_of_equal_size_and_time_has_its_own_hash(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(file.name.encode())
        os.utime(file, ns=(10**18, 10**18))
    assert len({integrity.file_hash(f) for f in files}) == 2


def test_a_blob_of_the_hub_is_known_by_its_name(tmp_path, readings):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    digest, git = hashlib.sha256(b"weights").hexdigest(), "0" * 40
    for name, content in ((digest, b"weights"), (git, b"{}")):
        (blobs / name).write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(blobs / digest)
    (snapshot / "config.json").symlink_to(blobs / git)
    assert integrity.file_hash(snapshot / "model.safetensors") == digest
    assert readings == []
    assert integrity.file_hash(snapshot / "config.json") == hashlib.sha256(b"{}").hexdigest()
    assert len(readings) == 1


def test_a_name_that_looks_like_a_hash_is_no_hash_outside_the_hubs_cache(tmp_path):
    file = tmp_path / ("a" * 64)
    file.write_bytes(b"weights")
    assert integrity.file_hash(file) == hashlib.sha256(b"weights").hexdigest()


def test_a_damaged_blob_is_scanned_again_though_its_name_is_the_same(tmp_path):
    folder = save(tmp_path / "model")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    blob = blobs / ("b" * 64)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    load(folder)
    overwrite(blob, place_of(blob, WEIGHT), struct.pack("<f", np.nan))
    assert WEIGHT in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"x": 1}'])
def test_a_broken_cache_is_an_empty_one(tmp_path, content):
    kept = tmp_path / "cache"
    kept.mkdir()
    for subject in ("hashes", "scans"):
        (kept / f"{subject}.json").write_bytes(content)
    folder = save(tmp_path / "model")
    assert load(folder).n_layers == 4
    want = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert integrity.hashes(folder)["config.json"] == want


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLXROLES_CACHE", str(tmp_path / "file"))
    folder = save(tmp_path / "model")
    assert load(folder).n_layers == 4
    assert cache.read("hashes") == {}


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    assert cache.folder() == tmp_path / "cache"
    cache.remember("things", "a", 1)
    cache.remember("things", "b", [2])
    assert cache.read("things") == {"a": 1, "b": [2]}
    monkeypatch.delenv("MLXROLES_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.folder() == Path("/somewhere/mlxroles")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache.folder() == Path.home() / "Library" / "Caches" / "mlxroles"


def test_hashes_cover_everything_that_changes_numbers(tmp_path):
    folder = save(tmp_path / "model", shards=2)
    for name in ("tokenizer.json", "chat_template.jinja", "merges.txt", "README.md"):
        (folder / name).write_text(name)
    assert list(integrity.hashes(folder)) == [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
    ]
    assert integrity.combined(["a", "b"]) != integrity.combined(["b", "a"])


def test_the_code_that_a_folder_brings_is_part_of_what_identifies_it(tmp_path):
    folder = save(tmp_path / "m")
    (folder / "modeling.py").write_text("a = 1")
    before = integrity.hashes(folder)
    assert "modeling.py" in before
    (folder / "modeling.py").write_text("a = 22")
    assert integrity.hashes(folder) != before
