"""Component files: made by singular values, imported, written, read, shown, ablated from."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import tiny, tiny_llama, to_numpy, tokens

from mlxroles.backend import mx, nn
from mlxroles.components import file, importing
from mlxroles.components.decomposition import Components, Decomposition, parse
from mlxroles.components.edits import ablation
from mlxroles.components.maps import decomposable, inputs
from mlxroles.components.svd import factors, svd
from mlxroles.edits import zero
from mlxroles.errors import ModelError, SpecError, StoreError
from mlxroles.models.load import load, wrap
from mlxroles.studies.ablate.parts import Parts


@pytest.fixture(scope="module")
def llama():
    return wrap(tiny_llama(5), name="llama")


@pytest.fixture(scope="module")
def decomposed(llama):
    return svd(llama, layers=[0, 2])


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A component file of tiny/base, layer 2's attention."""
    path = tmp_path_factory.mktemp("components") / "base.safetensors"
    return file.write(path, svd(load("tiny/base"), ("q", "k", "v", "o"), layers=[2]))


def random(d_in=6, d_out=8, n=5, kind="q", heads=2, seed=0):
    rng = np.random.default_rng(seed)
    v, u = rng.standard_normal((d_in, n)), rng.standard_normal((n, d_out))
    width = (d_in if kind == "o" else d_out) // heads
    return Decomposition(f"L1.{kind}", 1, kind, v, u, heads, width)


# --- maps and decompositions --------------------------------------------------------------------


def test_the_maps_of_a_llama_are_its_matrices(llama):
    maps = decomposable(llama)
    attention = llama.module.layers[1].self_attn
    assert [key for key in maps if key.startswith("L1.")] == [
        *(f"L1.{kind}" for kind in "qkvo"),
        *(f"L1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert [(maps[f"L1.{k}"].n_heads, maps[f"L1.{k}"].d_head) for k in "qkvo"] == [
        (4, 8),
        (2, 8),
        (2, 8),
        (4, 8),
    ]
    for kind in "qkvo":
        weight = maps[f"L1.{kind}"].weight(llama)
        np.testing.assert_array_equal(weight, to_numpy(attention[f"{kind}_proj"].weight))


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox", "olmo2", "lfm2"])
def test_maps_compute_what_leaves_them(name):
    """W x + b of each map, in the rows of a fused matrix, against the module's own call."""
    model = tiny(name)
    maps, ids = decomposable(model), tokens(1, 5, vocab=60)
    entering = inputs(model, maps.values(), ids)
    for m in maps.values():
        leaf = m.leaf(model)
        given = to_numpy(leaf(entering[m.key]))
        given = given if m.rows is None else given[..., m.rows]
        own = to_numpy(entering[m.key]) @ m.weight(model).T
        if "bias" in leaf:
            bias = to_numpy(leaf["bias"])
            own = own + (bias if m.rows is None else bias[m.rows])
        np.testing.assert_allclose(own, given, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mixtral", "mlp", "mlp of layer 0 of mixtral cannot be decomposed: it sends positions"),
        ("deepseek_v3", "q", "q of layer 0 of deepseek_v3 cannot .* its heads; .* maps, of o,mlp$"),
        ("qwen3_next", "o", "o of layer .* of qwen3_next cannot be decomposed: something stands"),
        ("mamba", "q", "mamba has no maps to decompose: no softmax attention"),
    ],
)
def test_what_has_no_map_is_refused_by_name(name, kind, message):
    with pytest.raises(ModelError, match=message) as refused:
        decomposable(tiny(name), [kind])
    assert "\n" not in str(refused.value)


def test_the_sum_of_components_is_their_weight():
    """Identities of the slices: of components, and of heads of a component."""
    for kind in "qo":
        d = random(kind=kind, d_in=8 if kind == "o" else 6)
        total = sum(d.component(c) for c in range(d.n))
        np.testing.assert_allclose(total, d.weight(), atol=1e-6)
        np.testing.assert_allclose(d.weight(), (d.V @ d.U).T, atol=1e-6)
        for c in range(d.n):
            by_head = [d.component(c, [h]) for h in range(d.n_heads)]
            np.testing.assert_array_equal(sum(by_head), d.component(c))
            norms = [np.linalg.norm(part) for part in by_head]
            own = [np.linalg.norm(d.head(c, h)) for h in range(d.n_heads)]
            other = np.linalg.norm(d.U[c] if kind == "o" else d.V[:, c])
            np.testing.assert_allclose(norms, np.array(own) * other, rtol=1e-5)


def test_what_makes_no_decomposition_is_refused():
    d = random()
    with pytest.raises(ValueError, match="5 components in V and 4 in U"):
        Decomposition("L1.q", 1, "q", d.V, d.U[:4], 2, 4)
    with pytest.raises(ValueError, match="3 heads of 4, which do not make 8"):
        Decomposition("L1.q", 1, "q", d.V, d.U, 3, 4)
    with pytest.raises(ValueError, match="no finite matrix"):
        Decomposition("L1.q", 1, "q", d.V * np.inf, d.U, 2, 4)


@pytest.mark.parametrize("text", ["L3.q:17", "L3.q:17@H4+H5", "L3.mlp.down_proj:2"])
def test_names_say_what_they_were_read_from(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["", "L3.q", "q:1", "L3.q:-1", "L3.q:1@4", "L3.q:1@H1+", "L3:1"])
def test_other_words_name_no_component(text):
    with pytest.raises(SpecError, match=r"names no component; write L3\.q:17"):
        parse(text)


# --- singular values ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "fused", "4-bit"])
def test_all_components_sum_to_the_weight(kind, llama):
    if kind == "4-bit":
        module = tiny_llama(6, hidden_size=64, intermediate_size=128)
        nn.quantize(module, group_size=32, bits=4)
        model = wrap(module, name=kind)
    else:
        model = llama if kind == "llama" else tiny("phi3")
    found, maps = svd(model), decomposable(model)
    assert [*found.maps] == [*maps]
    for key, d in found.maps.items():
        weight = maps[key].weight(model)
        np.testing.assert_allclose(d.weight(), weight, atol=2e-6 * np.abs(weight).max() + 1e-7)
        np.testing.assert_allclose(d.V.T @ d.V, np.eye(d.n), atol=1e-5)
        sizes = np.linalg.norm(d.U, axis=1)
        np.testing.assert_allclose(sizes, np.linalg.svd(weight)[1][: d.n], rtol=1e-4, atol=1e-5)


def test_the_largest_components_are_the_best_of_their_number():
    weight = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    v, u, left_out = factors(weight, 2)
    rest = np.linalg.svd(weight)[1][2:]
    assert np.linalg.norm((v @ u).T - weight) == pytest.approx(np.linalg.norm(rest), rel=1e-5)
    assert left_out == pytest.approx((rest**2).sum() / (weight**2).sum(), rel=1e-5)
    assert factors(np.ones((4, 3), np.float32))[0].shape == (3, 1)
    assert factors(np.zeros((4, 3), np.float32))[0].shape == (3, 1)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".h5"])
def test_a_file_gives_back_what_was_written(suffix, llama, decomposed, tmp_path):
    importance = {"L0.q.0.W": np.ones((3, 2), np.float32), "L0.q.0.b": np.zeros(2, np.float32)}
    meta = {"model": file.identity(llama), "made": "trained", "config": {"seed": 1, "text": "ö"}}
    path = file.write(tmp_path / f"x{suffix}", Components(decomposed.maps, importance, meta))
    found = file.read(path, llama)
    assert [*found.maps] == [*decomposed.maps]
    for key, d in decomposed.maps.items():
        same = found.maps[key]
        assert (same.layer, same.kind, same.n_heads, same.d_head) == (
            *(d.layer, d.kind, d.n_heads, d.d_head),
        )
        np.testing.assert_array_equal(same.V, d.V)
        np.testing.assert_array_equal(same.U, d.U)
    assert {n: a.tolist() for n, a in found.importance.items()} == {
        n: a.tolist() for n, a in importance.items()
    }
    assert found.meta == meta


@pytest.mark.parametrize("suffix", [".safetensors", ".h5"])
@pytest.mark.parametrize("harm", ["half", "nothing", "noise", "start"])
def test_a_damaged_file_is_one_line(suffix, harm, decomposed, tmp_path):
    path = file.write(tmp_path / f"x{suffix}", Components({"L0.q": decomposed.maps["L0.q"]}))
    data = path.read_bytes()
    kept = {"half": data[: len(data) // 2], "nothing": b"", "noise": b"\xff" * 4096}
    path.write_bytes(kept.get(harm, data[:20]))
    with pytest.raises((StoreError, SpecError)) as refused:
        file.read(path)
    assert "\n" not in str(refused.value)


def test_a_file_of_something_else_is_refused(llama, decomposed, tmp_path):
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"a": mx.zeros((2, 2))})
    with pytest.raises(SpecError, match="goes through mlxroles components import"):
        file.read(tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match="make one with mlxroles components svd"):
        file.read(tmp_path / "none.safetensors")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(SpecError, match="may hold a pickle"):
        file.read(tmp_path / "x.pt")
    with pytest.raises(SpecError, match="belong to another model"):
        file.fitted(decomposed, wrap(tiny_llama(0, num_hidden_layers=2)))
    with pytest.raises(SpecError, match=r"L0\.q of the components maps 32 to 32"):
        file.fitted(decomposed, wrap(tiny_llama(0, hidden_size=64)))


def test_components_of_other_weights_are_noted(packaged):
    components = file.read(packaged)
    assert file.foreign(components, load("tiny/base")) is None
    assert file.foreign(components, load("tiny/instruct")) == (
        "the components were made from tiny/base, whose weights are others than this model's"
    )


# --- import -------------------------------------------------------------------------------------


def original(model, *, old=False):
    """A state dict as the published program would save it, of layer 1, by its key names."""
    rng, state = np.random.default_rng(0), {}
    wholes = {f"attn.{k}_proj": f"L1.{k}" for k in "qkvo"}
    wholes |= {"mlp.c_fc": "L1.mlp.up_proj", "mlp.down_proj": "L1.mlp.down_proj"}
    maps = decomposable(model)
    for path, key in wholes.items():
        m, module = maps[key], f"h.1.{path}"
        v, u = rng.standard_normal((m.d_in, 4)), rng.standard_normal((4, m.d_out))
        dashed = module.replace(".", "-")
        inside = f"patched_model.{module}.components" if old else f"_components.{dashed}"
        state |= {f"{inside}.V": v, f"{inside}.U": u}
        target = f"patched_model.{module}.original" if old else f"target_model.{module}"
        state[f"{target}.weight"] = 2 * (v @ u).T
        gate = f"_gates.{dashed}" if old else f"ci_fn._ci_fns.{dashed}"
        for n, (d_in, d_out) in ((0, (1, 3)), (2, (3, 1))):
            state[f"{gate}.layers.{n}.W"] = rng.standard_normal((4, d_in, d_out))
            state[f"{gate}.layers.{n}.b"] = rng.standard_normal((4, d_out))
    state |= {"_components.wte.V": np.ones((9, 4)), "_components.wte.U": np.ones((4, 8))}
    return {name: a.astype(np.float32) for name, a in state.items()}


def saved(state, path):
    mx.save_safetensors(str(path), {name: mx.array(a) for name, a in state.items()})
    return path


@pytest.mark.parametrize("old", [False, True])
def test_checkpoints_of_the_original_are_taken_over(old, llama, tmp_path):
    state = original(llama, old=old)
    path = saved(state, tmp_path / "state.safetensors")
    for model, d_head in ((llama, None), (None, 8)):
        found = importing.read_state(path, model=model, d_head=d_head)
        up = "L1.mlp.up_proj" if model else "L1.mlp.c_fc"
        assert {*found.maps} == {*(f"L1.{k}" for k in "qkvo"), up, "L1.mlp.down_proj"}
        assert (found.maps["L1.k"].n_heads, found.maps["L1.o"].n_heads) == (2, 4)
        module = (
            "patched_model.h.1.attn.k_proj.components" if old else "_components.h-1-attn-k_proj"
        )
        np.testing.assert_array_equal(found.maps["L1.k"].V, state[f"{module}.V"])
        np.testing.assert_array_equal(found.maps["L1.k"].U, state[f"{module}.U"])
        gate = ("_gates" if old else "ci_fn._ci_fns") + ".h-1-mlp-c_fc.layers"
        assert {f"{up}.{n}.{p}" for n in (0, 2) for p in "Wb"} <= {*found.importance}
        np.testing.assert_array_equal(found.importance[f"{up}.2.W"], state[f"{gate}.2.W"])
        assert found.meta["left_out"] == ["wte"]
        assert found.meta["unexplained"] == pytest.approx(0.25)
    written = file.write(tmp_path / "own.h5", found)
    assert {*file.read(written).maps} == {*found.maps}


def test_imported_importance_is_what_the_original_computes(llama, tmp_path):
    """MLPs of one input per component with exact GELUs, written as plain loops."""
    from math import erf

    from mlxroles.components.importance import importance_of

    state = original(llama)
    found = importing.read_state(saved(state, tmp_path / "s.safetensors"), model=llama)
    d = found.maps["L1.q"]
    x = np.random.default_rng(1).standard_normal((3, d.d_in)).astype(np.float32)
    a = x @ d.V
    g = np.asarray(importance_of(found)("L1.q", mx.array(x), mx.array(a)))
    name = "ci_fn._ci_fns.h-1-attn-q_proj.layers"
    w0, b0, w1, b1 = (state[f"{name}.{part}"] for part in ("0.W", "0.b", "2.W", "2.b"))
    for row in range(3):
        for c in range(d.n):
            hidden = a[row, c] * w0[c, 0] + b0[c]
            hidden = [h * 0.5 * (1 + erf(h / 2**0.5)) for h in hidden]
            wanted = float(np.dot(hidden, w1[c, :, 0]) + b1[c, 0])
            assert g[row, c] == pytest.approx(min(1, max(0, wanted)), abs=1e-5)


def test_one_importance_function_of_all_maps_reads_them_by_their_names(llama, tmp_path):
    """Its inputs and outputs are in the order of the original's modules: k, o, q, v, then MLPs."""
    from mlxroles.components.importance import importance_of

    state = {n: a for n, a in original(llama).items() if "wte" not in n and "ci_fn" not in n}
    modules = sorted(n.split(".")[1] for n in state if n.endswith(".V"))
    inputs = [len(state[f"_components.{m}.V"]) for m in modules]
    rng = np.random.default_rng(2)
    shapes = {"0.W": (sum(inputs), 5), "0.b": (5,), "2.W": (5, 24), "2.b": (24,)}
    own = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    state |= {f"ci_fn._global_ci_fn.layers.{n}": a for n, a in own.items()}
    found = importing.read_state(saved(state, tmp_path / "s.safetensors"), model=llama)
    keys = {module.replace(".", "-"): key for key, module in found.meta["modules"].items()}
    arrays = (rng.standard_normal((3, n)).astype(np.float32) for n in inputs)
    x = dict(zip(modules, arrays, strict=True))
    hidden = mx.array(np.concatenate([x[m] for m in modules], axis=1) @ own["0.W"] + own["0.b"])
    wanted = np.clip(np.array(nn.gelu(hidden)) @ own["2.W"] + own["2.b"], 0, 1)
    given = {keys[m]: mx.array(a) for m, a in x.items()}
    got = importance_of(found).of_all(given, given)
    for n, module in enumerate(modules):
        part = wanted[:, 4 * n : 4 * n + 4]
        np.testing.assert_allclose(np.array(got[keys[module]]), part, atol=1e-4)


@pytest.mark.parametrize(
    ("add", "why"),
    [
        ({"ci_fn._global_ci_fn._output_head.W": (5, 24)}, r"_output_head.W, ...\) is no MLP"),
        ({"ci_fn._global_ci_fn.layers.0.W": (5, 24)}, "also reads wte, so it is not taken"),
        ({"_gates.h-1-attn-q_proj.layers.0.W": (4, 1, 1)}, "k_proj has no importance function"),
        ({}, None),
    ],
)
def test_importance_that_is_not_taken_over_is_said(add, why, llama, tmp_path):
    state = {n: a for n, a in original(llama).items() if "ci_fn" not in n}
    state |= {name: np.ones(shape, np.float32) for name, shape in add.items()}
    found = importing.read_state(saved(state, tmp_path / "s.safetensors"), model=llama)
    assert not found.importance
    told = found.meta["no_importance"]
    assert told is None if why is None else re.search(why, told)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"V": np.full((32, 4), np.nan)}, "V of L1.q is no finite matrix"),
        ({"V": np.ones((32, 3))}, "L1.q has 3 components in V and 4 in U"),
        ({"U": np.ones(32)}, r"L1.q has V \(32, 4\) and U \(32,\); matrices were expected"),
        ({"W": np.ones((4, 2, 3))}, "the importance function's parameters fit no MLP"),
        ({"W": np.ones(3)}, "the importance function's parameters fit no MLP"),
    ],
)
def test_arrays_that_make_no_components_are_refused(change, message, llama, tmp_path):
    state = original(llama)
    names = {"V": "_components.h-1-attn-q_proj.V", "U": "_components.h-1-attn-q_proj.U"}
    names["W"] = "ci_fn._ci_fns.h-1-attn-q_proj.layers.2.W"
    state |= {names[which]: a.astype(np.float32) for which, a in change.items()}
    with pytest.raises(SpecError, match=message) as refused:
        importing.read_state(saved(state, tmp_path / "state.safetensors"), model=llama)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "width of a head with --d-head"),
        ("empty", "has no components; expected keys such as _components.h-0-attn-q_proj.U"),
        ("wte", "has components of no q, k, v, o or MLP map"),
    ],
)
def test_what_cannot_be_imported_is_said(change, message, llama, tmp_path):
    state = original(llama)
    if change == "empty":
        state = {"a": np.ones(2, np.float32)}
    elif change == "wte":
        state = {name: a for name, a in state.items() if ".wte." in name}
    with pytest.raises(SpecError, match=message):
        importing.read_state(saved(state, tmp_path / "state.safetensors"))


# --- commands -----------------------------------------------------------------------------------


def test_the_group_is_listed_without_importing_its_commands():
    code = (
        "import sys; from mlxroles import cli; status = cli.run(['components', '--help']);"
        "heavy = [n for n in sys.modules if n.startswith(('mlxroles.cli.components_', 'mlx.', "
        "'mlx_lm', 'numpy', 'matplotlib'))]; sys.exit(1 if heavy or status else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Commands:")[2].split()
    names = ("svd", "train", "import", "show", "harvest", "induction", "report")
    assert all(name in listed for name in names)


def test_files_are_made_and_shown(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = ("components", "svd", "x.safetensors", "--model", "tiny/base", "--maps", "q,k")
    status, out, err = call(*make, "--layers", "2-3", "--rank", "8")
    assert status == 0, err
    assert out.startswith("32 components in 4 maps of tiny/base, by singular values\n")
    assert "the components left out hold up to" in err
    status, _, err = call(*make)
    assert status == 2
    assert "x.safetensors is there already" in err
    status, out, _ = call("components", "show", "x.safetensors", "--json", "--model", "tiny/base")
    doc = json.loads(out)
    weight = decomposable(load("tiny/base"), ["q"], layers=[2])["L2.q"].weight(load("tiny/base"))
    s = np.linalg.svd(weight)[1] ** 2
    row = doc["maps"][0]
    assert (row["map"], row["components"], row["top"]) == ("L2.q", 8, "L2.q:0")
    assert row["missing"] == pytest.approx(s[8:].sum() / s.sum(), rel=1e-4)
    assert row["share"] == pytest.approx(s[0] / s[:8].sum(), rel=1e-4)
    status, out, err = call("components", "show", "x.safetensors", "--model", "tiny/instruct")
    assert status == 0
    assert "L2.q\t128\t192\t8\t8\t:0" in out
    assert "made from tiny/base, whose weights are others" in err
    for bad, code in (
        (("svd", "x.pt", "--model", "tiny/base"), 2),
        (("svd", "y.h5", "--model", "tiny/base", "--maps", "q,z"), 2),
        (("svd", "y.h5", "--model", "tiny/base", "--layers", "9"), 1),
        (("show", "nothing.h5"), 1),
        (("nothing",), 2),
    ):
        status, _, err = call("components", *bad)
        assert status == code, bad


# --- ablations ----------------------------------------------------------------------------------


def test_components_are_ablated_beside_random_ones(call, packaged, tmp_path, monkeypatch):
    """KL of every row against the model's own runs; random ones are others of the same maps."""
    monkeypatch.chdir(tmp_path)
    ids = [5, 6, 7, 8, 9, 10, 3, 4]
    asked = ("ablate", "--model", "tiny/base", "--components", f"{packaged}#L2.q:0,L2.k:1@H2")
    asked += ("--prompt-ids", ",".join(map(str, ids)), "--random", 3, "--json", "--out", "run")
    status, out, err = call(*asked)
    assert status == 0, err
    doc = json.loads(out)
    model, components = load("tiny/base"), file.read(packaged)
    clean = log_probs(model.run(ids).logits)
    named = [["L2.q:0"], ["L2.k:1@H2"], ["L2.q:0", "L2.k:1@H2"]]
    assert [row["components"] for row in doc["rows"]] == named
    for row, names in zip(doc["rows"], named, strict=True):
        gone = log_probs(model.run(ids, edits=ablation(model, components, names)).logits)
        kl = (np.exp(clean) * (clean - gone)).sum(axis=-1).mean()
        assert row["kl"]["mean"] == pytest.approx(kl, rel=1e-3)
        assert row["null"]["n"] == 3
    assert "times as large as those ablated" in " ".join(doc["notes"])
    both = doc["rows"][2]
    assert both["sum"]["mean"] == pytest.approx(sum(r["kl"]["mean"] for r in doc["rows"][:2]))
    with (tmp_path / "run" / "effects.csv").open() as table:
        lines = [line for line in csv.DictReader(table) if line["random"]]
    drawn = {name for line in lines for name in line["components"].split()}
    assert all(name.startswith("L2.q:") or name.endswith("@H2") for name in drawn)
    assert not drawn & {"L2.q:0", "L2.k:1@H2"}
    status, out, _ = call("show", "run")
    assert status == 0
    assert "L2.k:1@H2" in out


def test_words_for_several_components(packaged):
    """The largest of the file, those of a map, and random ones beside them."""
    components = file.read(packaged)
    maps = components.maps.items()
    sizes = {f"{key}:{c}": np.linalg.norm(d.U[c]) for key, d in maps for c in range(d.n)}
    ranked = sorted(sizes, key=lambda name: -sizes[name])
    assert [str(n) for n in Parts.of(f"{packaged}#top", 5).names] == ranked[:5]
    assert [str(n) for n in Parts.of(f"{packaged}#L2.k", 2).names] == ["L2.k:0", "L2.k:1"]
    parts = Parts.of(f"{packaged}#L2.k:3@H1,L2.o:0,L2.k:3@H1", 2)
    assert [str(n) for n in parts.names] == ["L2.k:3@H1", "L2.o:0"]
    growing = parts.ablations(growing=True)
    assert [a.components for a in growing][-1] == ("L2.k:3@H1", "L2.o:0")
    drawn = parts.random(["L2.k:3@H1", "L2.o:0"], 40, 0)
    assert len({*drawn}) == len(drawn) == 40
    for first, second in drawn:
        assert parse(first, components).heads == (1,)
        assert parse(first).index != 3
        assert parse(second, components)[0] == "L2.o"
        assert parse(second).index != 0
    assert drawn == parts.random(["L2.k:3@H1", "L2.o:0"], 40, 0)
    assert drawn != parts.random(["L2.k:3@H1", "L2.o:0"], 40, 1)


def log_probs(logits):
    logits = to_numpy(logits).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_redundancy_of_components_is_that_of_runs_without_them(
    call, packaged, tmp_path, monkeypatch
):
    """What remains, worked out from plain runs: q at t alone, v everywhere."""
    monkeypatch.chdir(tmp_path)
    ids, names = [5, 6, 7, 8, 5, 6, 7], ["L2.q:0", "L2.v:2"]
    asked = ("ablate", "--model", "tiny/base", "--components", f"{packaged}#{','.join(names)}")
    asked += ("--test", "redundancy", "--prompt-ids", ",".join(map(str, ids)), "--random", 2)
    status, out, err = call(*asked, "--positions", "last", "--json")
    assert status == 0, err
    doc = json.loads(out)
    model, components = load("tiny/base"), file.read(packaged)
    gone = ablation(model, components, names[:1], [len(ids) - 1])
    gone += ablation(model, components, names[1:])
    values = [zero("v", 2, positions=[len(ids) - 2])]
    outs = []
    for edits in ([], gone, values, [*gone, *values]):
        run = model.run(ids, keep=["attn_out"], layers=[2], edits=edits)
        outs.append(to_numpy(run["attn_out", 2])[0, -1].astype(np.float64))
    base, a, b, ab = outs
    share = ((a - ab) ** 2).sum() / ((base - b) ** 2).sum()
    assert doc["remains"][0]["share"] == pytest.approx(share, rel=1e-3)
    assert doc["components"] == names
    assert "random components leave" in doc["sentence"]
    assert all({"L2.q", "L2.v"} == {n.split(":")[0] for n in s} for s in doc["random_components"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--components", "FILE"), "names none; write FILE#L3.q:17,L3.k:2"),
        (("--components", "FILE#L7.q:1"), "no map L7.q is decomposed"),
        (("--components", "FILE#L2.q:999"), "component 999 of L2.q is outside 0..127"),
        (("--components", "FILE#L2.q:1,L2.q:1@H2"), "L2.q:1@H2 is named twice"),
        (("--components", "FILE#L2.q:1", "--heads", "L1H1"), "are two ablations"),
        (("--components", "FILE#L2.q:1", "--layers", "1"), "names its layers already"),
        (("--components", "FILE#L2.q:1", "--method", "mean"), "taken out or scaled"),
        (("--components", "FILE#L2.q:1", "--test", "offsets"), "is about some heads"),
        (("--components", "none.h5#L2.q:1"), "there is no component file none.h5"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words, message, call, packaged):
    given = [word.replace("FILE", str(packaged)) for word in words]
    status, _, err = call("ablate", "--model", "tiny/base", *given)
    assert status == 1
    assert message in err
    assert err.count("\n") == 1
