"""What role metrics are read from: runs, patterns, published tables, and every fault in them."""

import json
import os
import zipfile

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from role_files import random_patterns, write_run
from role_tables import entropies_of, random_tables

from mlxroles.errors import MlxrolesError, SpecError, StoreError
from mlxroles.roles import sources, tables_csv
from mlxroles.roles.tables_csv import CANDIDATE_COLUMNS, COMPARISON_COLUMNS

FIELDS = ("entropy", "entropy_no_first", "first_keys", "recent_keys")


def one_line(function, *args, match, error=StoreError, **options):
    """The call is refused in one line."""
    with pytest.raises(error, match=match) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)


def same(found, expected):
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other.astype("f4"), atol=0, rtol=0)
    np.testing.assert_array_equal(found.length, expected.length)
    np.testing.assert_array_equal(found.has_bos, expected.has_bos)
    assert found.category == expected.category
    assert found.prompts == expected.prompts
    assert found.layers == expected.layers


# --- runs -------------------------------------------------------------------------------------


def test_a_run_gives_back_both_models_cell_by_cell(tmp_path):
    tables = random_tables(1)
    source = sources.load(str(write_run(tmp_path / "run", tables)))
    assert (source.name, source.kind, list(source.tables)) == ("Toy", "run", ["base", "instruct"])
    for side, table in tables.items():
        same(source.side(side), table)
        assert source.side(side).model == side


@pytest.mark.parametrize("inside", ["run.h5", "summary.json", "manifest.json"])
def test_a_file_of_a_run_stands_for_the_run(tmp_path, inside):
    folder = write_run(tmp_path / "run", random_tables(1))
    assert sources.load(str(folder / inside)).path == folder


@pytest.mark.parametrize("model", ["model", "base"])
def test_a_run_of_one_model_has_its_name(tmp_path, model):
    table = random_tables(2)["base"]
    source = sources.load(str(write_run(tmp_path / "run", {model: table})))
    assert list(source.tables) == [model]
    same(source.side("base"), table)
    if model == "base":
        one_line(source.side, "instruct", match="has no model instruct, only base", error=SpecError)


def test_layers_without_attention_are_left_out(tmp_path):
    tables = random_tables(3)
    for table in tables.values():
        table.entropy[:, 1] = np.nan
    source = sources.load(str(write_run(tmp_path / "run", tables, layers=[0, 2, 3, 7])))
    assert source.side("base").layers == (0, 3, 7)
    np.testing.assert_array_equal(
        source.side("instruct").entropy, tables["instruct"].entropy[:, [0, 2, 3]]
    )


def test_missing_cells_are_counted_and_refused(tmp_path):
    tables = random_tables(4)
    tables["instruct"].entropy[[2, 5]] = np.nan
    folder = write_run(tmp_path / "run", tables)
    one_line(
        sources.load, str(folder), match="2 of 64 cells are missing; run the same command again"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -5.0])
def test_a_hole_in_a_run_is_refused(tmp_path, bad):
    tables = random_tables(5)
    tables["base"].entropy[3, 1, 2, 1] = bad
    folder = write_run(tmp_path / "run", tables)
    one_line(sources.load, str(folder), match=r"run\.h5: entropies that are no numbers")


@pytest.mark.parametrize("name", ["length", "category", "recent_keys", "has_bos"])
def test_a_run_that_lacks_a_variable_is_refused(tmp_path, name):
    folder = write_run(tmp_path / "run", random_tables(6))
    with h5py.File(folder / "run.h5", "r+") as file:
        del file[name]
    one_line(sources.load, str(folder), match=f"{name} is missing")


def test_lengths_beyond_the_stored_queries_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", random_tables(6))
    with h5py.File(folder / "run.h5", "r+") as file:
        file["length"][2] = 1000
    one_line(sources.load, str(folder), match="without a length from 1 to")


def test_other_folders_are_told_apart(tmp_path):
    one_line(sources.load, str(tmp_path), match="not a run folder: expected is")
    run = write_run(tmp_path / "runs" / "abc", random_tables(1))
    assert sources.load(str(run.parent)).path == run
    patch = tmp_path / "patch"
    patch.mkdir()
    (patch / "manifest.json").write_text("{}")
    one_line(sources.load, str(patch), match=r"has no run\.h5")
    with h5py.File(patch / "run.h5", "w") as file:
        file["recovery"] = np.zeros(3)
    one_line(sources.load, str(patch), match="not a run of `mlxroles entropy`")


def test_a_truncated_run_file_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", random_tables(1))
    data = (folder / "run.h5").read_bytes()
    (folder / "run.h5").write_bytes(data[: len(data) // 2])
    one_line(sources.load, str(folder), match=r"run\.h5 is damaged")


# --- families ---------------------------------------------------------------------------------


def test_a_family_stands_for_its_newest_complete_run(tmp_path):
    place = tmp_path / "results" / "entropy_llama"
    for age, (name, summary) in enumerate(
        [
            ("partial", {"missing_cells": 3}),
            ("failed", {"missing_cells": 1, "failed_cells": [{"cell": "x"}]}),
            ("good", {}),
            ("older", {}),
        ]
    ):
        folder = write_run(place / name, random_tables(1), summary=summary)
        os.utime(folder / "run.h5", (1e9 - age, 1e9 - age))
    (place / "notes.txt").write_text("nothing")
    source = sources.load("llama", results=tmp_path / "results")
    assert source.path == place / "good"


def test_a_family_without_a_complete_run_names_the_command(tmp_path):
    one_line(
        sources.load, "llama", results=tmp_path, match="`mlxroles entropy --family llama` first"
    )
    write_run(tmp_path / "entropy_llama" / "x", random_tables(1), summary={"missing_cells": 1})
    one_line(
        sources.load, "llama", results=tmp_path, match="no complete run .* --family llama` again"
    )


def test_a_folder_that_is_no_run_does_not_hide_a_family(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    one_line(sources.load, "llama", match="`mlxroles entropy --family llama` first")
    write_run(tmp_path / "llama", random_tables(1))
    assert sources.load("llama").kind == "run"


@pytest.mark.parametrize("text", ["lama", "", "no/such/file.csv", "a\0b", "~nobody/x", "x" * 5000])
def test_what_is_neither_path_nor_family_is_refused(text):
    one_line(sources.load, text, match="is no path|cannot be read", error=MlxrolesError)


def test_a_near_name_is_offered():
    one_line(sources.load, "lama", match="did you mean 'llama'", error=SpecError)


# --- patterns ---------------------------------------------------------------------------------


def saved(path, **changes):
    arrays = random_patterns(1) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_patterns_give_exact_entropies_and_near_keys(tmp_path):
    arrays = random_patterns(7)
    blocks = [
        arrays["pattern"][:, prompt, :, :size, :size].astype(float)
        for prompt, size in enumerate(arrays["length"])
    ]
    blocks = [block / block.sum(axis=-1, keepdims=True) for block in blocks]
    expected = entropies_of("model", blocks, arrays["category"].tolist(), has_bos=False)
    source = sources.load(saved(tmp_path / "mine.npz", **arrays))
    assert (source.name, source.kind) == ("mine", "patterns")
    found = source.side("instruct")
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    assert found.entropy.dtype == np.float64
    assert (found.prompts[1], found.category) == ("p001", tuple(arrays["category"].tolist()))
    assert not found.has_bos.any()


def test_what_lies_beyond_a_prompt_is_not_read(tmp_path):
    arrays = random_patterns(8)
    prompt = int(arrays["length"].argmin())
    dirty = arrays["pattern"].copy()
    dirty[:, prompt, :, arrays["length"][prompt] :] = np.nan
    clean = sources.load(saved(tmp_path / "a.npz", **arrays)).side("base")
    found = sources.load(saved(tmp_path / "b.npz", **arrays | {"pattern": dirty})).side("base")
    np.testing.assert_array_equal(found.entropy, clean.entropy)


def spoiled(place, value):
    pattern = random_patterns(1)["pattern"].copy()
    pattern[place] = value
    return pattern


def ahead():
    """Rows that sum to 1 and look at a later key."""
    pattern = random_patterns(1)["pattern"].copy()
    pattern[0, 1, 0, 0, :2] = 0.5
    return pattern


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"pattern": np.zeros((2, 12, 3, 7))}, "has the shape"),
        ({"pattern": np.zeros((2, 12, 3, 7, 6))}, "as many keys as queries"),
        ({"pattern": np.zeros((0, 12, 3, 7, 7))}, "has the shape"),
        ({"pattern": np.ones((2, 12, 3, 7, 7), dtype=int)}, "expected are floating numbers"),
        ({"pattern": np.array([1, None], dtype=object)}, "pattern holds Python objects"),
        ({"category": np.array(["a", None] * 6, dtype=object)}, "category holds Python objects"),
        ({"category": np.array(["a"] * 11)}, "one text for each of 12"),
        ({"category": np.arange(12)}, "one text for each of 12"),
        ({"category": np.array(["a"] * 11 + [""])}, "prompt 11 .* has no category"),
        ({"length": np.full(12, 4.5)}, "one whole number for each"),
        ({"length": np.full(11, 4)}, "one whole number for each"),
        ({"length": np.array([4] * 11 + [8])}, r"length of prompt 11 .* is 8, expected is 1 to 7"),
        ({"length": np.array([0] + [4] * 11)}, r"length of prompt 0 .* is 0"),
        ({"length": None}, r"lacks length \(it holds pattern, category\)"),
        ({"pattern": spoiled((0, 3, 1, 2, 1), np.nan)}, r"prompt 3 .* not finite"),
        ({"pattern": spoiled((0, 3, 1, 2, 1), np.inf)}, r"prompt 3 .* not finite"),
        ({"pattern": spoiled((0, 3, 1, 2, 1), -0.5)}, "weights are not negative"),
        ({"pattern": spoiled((1, 2, 1, 2), 0.0)}, r"prompt 2 .* a row that sums to 0, expected"),
        ({"pattern": ahead()}, r"prompt 1 .* the weight 0.5 on a later key"),
    ],
)
def test_wrong_patterns_are_refused_by_name(tmp_path, changes, match):
    one_line(sources.load, saved(tmp_path / "bad.npz", **changes), match=match)


@pytest.mark.parametrize("kept", [0, 1, 30, 400, 2000, -10])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_patterns_are_refused(tmp_path, kept, compressed):
    path = tmp_path / "cut.npz"
    (np.savez_compressed if compressed else np.savez)(path, **random_patterns(1))
    path.write_bytes(path.read_bytes()[:kept])
    one_line(sources.load, str(path), match="not a complete .npz|damaged")


@given(changes=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6))
def test_bytes_changed_anywhere_are_read_or_refused_in_one_line(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("damage") / "x.npz"
    np.savez_compressed(path, **random_patterns(1))
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[-1 - place % len(data)] = byte
    path.write_bytes(data)
    found, faults = None, []
    try:
        found = sources.load(str(path))
    except StoreError as error:
        faults = str(error).splitlines()
    assert len(faults) == (found is None)


def test_damage_inside_a_packed_array_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **random_patterns(1))
    data = bytearray(path.read_bytes())
    for place in range(300, 340):
        data[place] ^= 0xFF
    path.write_bytes(data)
    one_line(sources.load, str(path), match="damaged")


def test_an_array_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("pattern", "length", "category"):
            head = "{'descr': '<f8', 'fortran_order': False, 'shape': (900000, 900000), }"
            head = head.ljust(117) + "\n"
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + bytes([118, 0]) + head.encode())
    one_line(sources.load, str(path), match="damaged|does not fit into memory")


def test_files_that_only_bear_the_name_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("layer,head\n")
    one_line(sources.load, str(path), match="not a complete .npz")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    one_line(sources.load, str(path), match="not a complete .npz")
    folder = tmp_path / "y.npz"
    folder.mkdir()
    one_line(sources.load, str(folder), match="not a run folder")
    other = tmp_path / "z.parquet"
    other.write_bytes(b"PAR1")
    one_line(sources.load, str(other), match="none of what can be read here")


# --- published tables -------------------------------------------------------------------------


def comparison_text(*, columns=COMPARISON_COLUMNS, n_layers=3, newline="\n", **values):
    lines = [",".join(columns)]
    for layer in range(n_layers):
        row = dict.fromkeys(columns, "0.25") | {"n_heads_base": "28", "n_heads_instruct": "28"}
        row |= {"layer": str(layer)} | {k: v for k, v in values.items() if layer == 1}
        lines.append(",".join(row[column] for column in columns))
    return newline.join(lines) + newline


def candidates_text(columns=CANDIDATE_COLUMNS, n=3):
    lines = [",".join(columns)]
    for rank in range(n, 0, -1):
        row = dict.fromkeys(columns, "0.5") | {"model_family": "llama", "rank": str(rank)}
        row |= {"layer": str(rank), "head": "10", "n_self": "30", "n_neutral": "30"}
        row["layer_head"] = f"{rank}_10"
        lines.append(",".join(row[column] for column in columns))
    return "\n".join(lines)


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_the_published_table_has_32_layers_and_its_family_as_name(shared):
    folder = shared / "data" / "self-referent-study"
    source = sources.load(str(folder / "llama_detailed_comparison.csv"))
    assert (source.name, source.kind, len(source.comparison)) == ("llama", "comparison", 32)
    assert source.comparison[7]["rfc_diff"] == -0.02922558784484862
    assert source.comparison[7]["n_heads_base"] == 28
    older = sources.load(str(folder / "llama_detailed_comparison_20251019.csv"))
    assert older.name == "llama_20251019"
    one_line(source.side, "base", match="published table and holds no entropies", error=SpecError)


def test_a_table_without_a_name_takes_that_of_its_folder(tmp_path):
    (tmp_path / "mistral").mkdir()
    path = written(tmp_path / "mistral" / "detailed_comparison.csv", comparison_text())
    assert sources.load(path).name == "mistral"


def test_order_of_columns_and_rows_extra_columns_bom_and_line_ends_do_not_matter(tmp_path):
    plain = sources.load(written(tmp_path / "a.csv", comparison_text())).comparison
    shuffled = ["note", *reversed(COMPARISON_COLUMNS), "Unnamed: 0"]
    text = comparison_text(columns=shuffled, newline="\r\n")
    head, *lines = text.split("\r\n")[:-1]
    text = "\r\n".join([head, *reversed(lines), "", ""])
    found = sources.load(written(tmp_path / "b.csv", b"\xef\xbb\xbf" + text.encode())).comparison
    assert found == plain
    assert [row["layer"] for row in found] == [0, 1, 2]
    tabs = comparison_text().replace(",", "\t")
    assert sources.load(written(tmp_path / "c.csv", tabs)).comparison == plain


def test_candidates_come_in_the_order_of_ranks_with_or_without_names(tmp_path):
    path = written(tmp_path / "patching_candidates_llama.csv", candidates_text())
    source = sources.load(path)
    assert (source.name, source.kind) == ("llama", "candidates")
    assert [(row["rank"], row["layer_head"]) for row in source.candidates] == [
        (1, "1_10"),
        (2, "2_10"),
        (3, "3_10"),
    ]
    short = written(tmp_path / "b.csv", candidates_text(CANDIDATE_COLUMNS[:-1]))
    assert sources.load(short).candidates == source.candidates


def test_missing_spreads_and_bounds_become_nan(tmp_path):
    text = comparison_text(rfc_std_base="", rsi_diff_ci_low="nan")
    row = sources.load(written(tmp_path / "a.csv", text)).comparison[1]
    assert np.isnan([row["rfc_std_base"], row["rsi_diff_ci_low"]]).all()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("\n\n  \n", "is empty"),
        (",".join(COMPARISON_COLUMNS), "a header and no rows"),
        ("a,b,c\n1,2,3\n", r"no table of the study \(its columns begin a, b, c\)"),
        ("\x1b[31m,b\n1,2\n", r"its columns begin \\x1b\[31m, b"),
        (b"\xff\xfe\x00l", "not UTF-8"),
        ("layer,rfc_\0diff\n1,2\n", "no table of the study|not CSV"),
        (
            comparison_text(columns=COMPARISON_COLUMNS[:-2]),
            "lacks the columns rsi_diff_ci_low, rsi",
        ),
        (comparison_text(columns=COMPARISON_COLUMNS[1:]), "lacks the column layer of a detailed"),
        (
            candidates_text(CANDIDATE_COLUMNS[:8] + CANDIDATE_COLUMNS[9:]),
            "lacks the column neutral",
        ),
        (comparison_text(columns=(*COMPARISON_COLUMNS, "rfc_diff")), "the column rfc_diff twice"),
        (comparison_text(rfc_diff="much"), "line 3: rfc_diff is 'much', expected is a number"),
        (comparison_text(rfc_diff=""), "line 3: rfc_diff is '', expected is a number"),
        (comparison_text(rfc_diff="nan"), "line 3: rfc_diff is 'nan'"),
        (comparison_text(rfc_mean_base="inf"), "line 3: rfc_mean_base is 'inf'"),
        (comparison_text(rfc_diff="1_0"), "line 3: rfc_diff is '1_0'"),
        (comparison_text(rfc_diff='"0,5"'), "line 3: rfc_diff is '0,5'"),
        (comparison_text(rfc_std_base="-1"), "rfc_std_base is '-1', expected is 0 or more"),
        (comparison_text(layer="1.5"), "layer is '1.5', expected is a whole number from 0"),
        (comparison_text(layer="-1"), "layer is '-1', expected is a whole number from 0"),
        (comparison_text(layer="2"), "has layer 2 twice"),
        (comparison_text(n_heads_base="0"), "n_heads_base is '0', expected is a whole number"),
        (comparison_text()[:-40], r"line 4: \d+ values for 25 columns; is the file cut off"),
        (comparison_text().replace(",", ";", 1), "no table of the study|lacks|values for"),
    ],
)
def test_wrong_tables_are_refused_by_line_and_column(tmp_path, text, match):
    one_line(sources.load, written(tmp_path / "bad.csv", text), match=match)


def test_a_table_of_a_size_that_none_has_is_not_read(tmp_path):
    path = tmp_path / "big.csv"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    one_line(sources.load, str(path), match="far larger")


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.csv"
    path.write_bytes(data)
    with pytest.raises(StoreError):
        tables_csv.read(path)


@given(cut=st.integers(0, 2500), at=st.integers(0, 2500), byte=st.integers(0, 255))
def test_a_damaged_table_is_read_or_refused_in_one_line(tmp_path_factory, cut, at, byte):
    data = bytearray(comparison_text().encode())
    data[at % len(data)] = byte
    path = tmp_path_factory.mktemp("damage") / "x.csv"
    path.write_bytes(data[: max(cut, 1)] if cut % 2 else data)
    found, faults = [], []
    try:
        found = tables_csv.read(path)[1]
    except StoreError as error:
        faults = str(error).splitlines()
    assert len(faults) == 1 or all(isinstance(row["layer"], int) for row in found)
    assert bool(faults) != bool(found)


def test_a_damaged_summary_does_not_keep_a_run_from_being_read(tmp_path):
    folder = write_run(tmp_path / "entropy_llama" / "x", random_tables(1))
    for text in ("{", json.dumps([1]), "[" * 100_000):
        (folder / "summary.json").write_text(text)
        assert sources.load(str(folder)).name == "Llama-3.1-8B"


def test_a_table_of_changes_needs_the_change_of_rfc_alone(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("layer,rfc_diff,note\n1,-0.5,x\n0,0.25,y\n")
    source = sources.load(str(path))
    assert source.kind == "changes"
    assert source.comparison == [{"layer": 0, "rfc_diff": 0.25}, {"layer": 1, "rfc_diff": -0.5}]
    path.write_text("layer,rsi_diff\n1,-0.5\n")
    one_line(sources.load, str(path), match="no table of the study")
