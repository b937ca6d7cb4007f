"""The catalogue, its merging with the user's file, and what a model's name resolves to."""

import dataclasses
from pathlib import Path

import pytest
from model_folders import COMMIT, cached, index, plain
from told import line

from mlxroles import pairs, snapshots
from mlxroles.errors import ModelError, PairError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the user's own catalogue and makes it the one that is read."""

    def write(text: str) -> Path:
        path = tmp_path / "pairs.toml"
        path.write_text(text)
        monkeypatch.setenv("MLXROLES_PAIRS", str(path))
        return path

    return write


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


class TestCatalogue:
    def test_holds_the_pairs_and_families_of_the_studies(self):
        found = pairs.catalogue()
        assert list(found)[:4] == ["tiny", "llama8b", "qwen7b", "mistral7b"]
        assert {n for n, p in found.items() if p.kind == "family"} == {
            "llama", "qwen", "mistral", "gemma9b", "gemma27b",
        }  # fmt: skip
        groups = {n: p.d1_group for n, p in found.items() if p.d1_group}
        assert groups == {"llama8b": "A", "qwen7b": "B", "mistral7b": "B"}
        assert (found["qwen7b"].n_layers, found["qwen7b"].d_model) == (28, 3584)

    def test_every_entry_names_two_hub_models_or_two_of_the_package(self):
        for entry in pairs.catalogue().values():
            for side in pairs.SIDES:
                ref = entry.ref(side)
                assert ref.startswith("package:") or snapshots.hub_id(ref) is not None
            assert entry.base != entry.instruct
            assert entry.display
            assert entry.kind in pairs.KINDS

    def test_keys_of_the_file_are_the_fields_of_a_pair(self):
        assert {f.name for f in dataclasses.fields(pairs.Pair)} == {"name", *pairs._KEYS}

    def test_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(PairError) as error:
            pairs.pair("lama8b")
        assert "did you mean 'llama8b'" in line(error)
        assert "--base DIR --instruct DIR" in line(error)

    def test_hostile_name_is_shown_escaped(self):
        with pytest.raises(PairError) as error:
            pairs.pair("\x1b]0;x\x07\n")
        assert "\x1b" not in line(error)

    def test_pair_of_two_folders(self):
        made = pairs.pair_of("/x/My Base/", "org/inst")
        assert (made.base, made.instruct, made.display) == (
            "/x/My Base/", "org/inst", "My Base / inst",
        )  # fmt: skip
        assert "/" not in made.name
        assert " " not in made.name

    def test_side_must_be_one_of_two(self):
        with pytest.raises(ValueError, match="side 'chat'"):
            pairs.pair("tiny").ref("chat")


class TestOwnFile:
    def test_adds_and_overrides_key_by_key(self, own):
        path = own(
            '[mine]\nbase = "./b"\ninstruct = "org/i"\n[llama8b]\nbase = "org/other"\nbytes = 5\n'
        )
        found = pairs.catalogue()
        assert found["mine"].display == "mine"
        assert found["mine"].base == str(path.parent / "b")
        assert found["mine"].instruct == "org/i"
        assert found["llama8b"].base == "org/other"
        assert found["llama8b"].bytes == 5
        assert found["llama8b"].instruct == "mlx-community/Meta-Llama-3-8B-Instruct-4bit"
        assert found["llama8b"].d1_group == "A"

    def test_is_found_in_the_configuration_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        (tmp_path / "mlxroles").mkdir()
        (tmp_path / "mlxroles" / "pairs.toml").write_text('[m]\nbase = "a/b"\ninstruct = "a/c"\n')
        assert pairs.pair("m").base == "a/b"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('[m]\nbase="a/b"\ninsruct="a/c"\n', "unknown key 'insruct'; did you mean 'instruct'?"),
            ('[m]\nbase="a/b"\nzzz=1\n', "unknown key 'zzz'; known keys: base, instruct"),
            ('[m]\nbase="a/b"\n', "lacks instruct"),
            ("[m]\n", "lacks base and instruct"),
            ('[m]\nbase="a/b"\ninstruct=3\n', "instruct = 3: expected a text"),
            ('[m]\nbase=""\ninstruct="a/b"\n', "base is empty"),
            ("[llama8b]\nn_layers=true\n", "n_layers = True: expected a whole number"),
            ("[llama8b]\nn_layers=0\n", "n_layers = 0: expected 1 or more"),
            ('[llama8b]\ntemplate="x"\n', "template = 'x': expected one of same, instruct"),
            ('[llama8b]\nkind="role"\n', "kind = 'role': expected one of pair, family"),
            ("m = 1\n", "[m] is not a table"),
            ('["../x"]\nbase="a/b"\n', "[../x] is not a name"),
            ("[m\n", "not valid TOML"),
        ],
    )
    def test_mistakes_are_named(self, own, text, said):
        path = own(text)
        with pytest.raises(PairError) as error:
            pairs.catalogue()
        assert said in line(error)
        assert line(error).startswith(str(path))

    def test_not_utf8(self, own):
        own("").write_bytes(b'[m]\nbase = "\xff"\n')
        with pytest.raises(PairError, match="not valid TOML"):
            pairs.catalogue()

    def test_named_file_must_exist(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLXROLES_PAIRS", str(tmp_path / "no.toml"))
        with pytest.raises(PairError, match=r"MLXROLES_PAIRS names .*no\.toml, which is not"):
            pairs.catalogue()


class TestResolve:
    def test_folder(self, tmp_path):
        assert pairs.resolve(str(plain(tmp_path / "m"))) == tmp_path / "m"

    def test_folder_without_tokenizer_files_is_fine_and_home_is_expanded(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("HOME", str(tmp_path))
        plain(tmp_path / "m")
        assert pairs.resolve("~/m") == tmp_path / "m"

    def test_side_of_a_pair(self, own, tmp_path):
        folder = plain(tmp_path / "m")
        own(f'[mine]\nbase = "{folder}"\ninstruct = "a/b"\n')
        assert pairs.resolve("mine/base") == folder

    def test_pair_where_a_model_is_meant(self):
        with pytest.raises(PairError, match="tiny/base or tiny/instruct"):
            pairs.resolve("tiny")

    def test_package_reference_stays_in_the_package(self):
        with pytest.raises(ModelError, match="reinstall mlxroles"):
            pairs.resolve("package:../../tests")

    @pytest.mark.parametrize("side", pairs.SIDES)
    def test_tiny_is_embedded(self, side):
        folder = pairs.resolve(f"tiny/{side}")
        assert (folder / "config.json").is_file()
        assert folder.parent.name == "tiny"

    @pytest.mark.parametrize("ref", ["", "nowhere", "a/b/c", "/no/such/folder", "\x00", "x" * 5000])
    def test_no_such_folder(self, ref):
        with pytest.raises(ModelError) as error:
            pairs.resolve(ref)
        assert "no such folder" in line(error)
        assert len(line(error)) < 400

    def test_near_miss_of_a_side_is_suggested(self):
        with pytest.raises(PairError, match="llama8b/instruct; did you mean 'base'"):
            pairs.resolve("llama8b/bass")

    def test_near_miss_of_a_model_is_suggested(self):
        with pytest.raises(ModelError, match="did you mean 'llama8b/base'"):
            pairs.resolve("lama8b.base")

    def test_file_instead_of_a_folder(self, tmp_path):
        path = plain(tmp_path) / "config.json"
        with pytest.raises(ModelError, match="is a file; expected the folder"):
            pairs.resolve(str(path))

    def test_empty_folder(self, tmp_path):
        with pytest.raises(ModelError, match="the folder is empty"):
            pairs.resolve(str(tmp_path))

    def test_no_config(self, tmp_path):
        (plain(tmp_path) / "config.json").unlink()
        with pytest.raises(ModelError, match=r"no config\.json"):
            pairs.resolve(str(tmp_path))

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "m.gguf", "weights.npz"])
    def test_foreign_weights_only(self, tmp_path, name):
        with pytest.raises(ModelError, match=f"weights only as {name}; only safetensors"):
            pairs.resolve(str(plain(tmp_path, name)))

    def test_safetensors_of_another_name(self, tmp_path):
        with pytest.raises(ModelError, match=r"weights only as consolidated\.safetensors; mlx_lm"):
            pairs.resolve(str(plain(tmp_path, "consolidated.safetensors")))

    def test_no_weights(self, tmp_path):
        with pytest.raises(ModelError, match=r"no weights; expected model\.safetensors"):
            pairs.resolve(str(plain(tmp_path, "notes.txt")))

    def test_shard_missing_by_the_index(self, tmp_path):
        index(plain(tmp_path, "model-a.safetensors"), "model-a.safetensors", "model-b.safetensors")
        with pytest.raises(ModelError, match=r"incomplete: model-b\.safetensors missing"):
            pairs.resolve(str(tmp_path))

    def test_shard_missing_by_its_number(self, tmp_path):
        plain(tmp_path, "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
        with pytest.raises(ModelError, match=r"model-00003-of-00003\.safetensors missing"):
            pairs.resolve(str(tmp_path))

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}']
    )
    def test_unusable_index(self, tmp_path, text):
        (plain(tmp_path) / snapshots.INDEX).write_text(text)
        with pytest.raises(ModelError, match="incomplete: a readable model"):
            pairs.resolve(str(tmp_path))


class TestHubCache:
    def test_complete_snapshot_is_found(self, hub):
        folder = cached(hub, "org/name")
        assert pairs.resolve("org/name") == folder
        assert pairs.resolve(f"org/name@{COMMIT}") == folder
        assert pairs.find("org/name") == folder

    def test_missing_model_says_which_command_to_run(self, hub):
        with pytest.raises(ModelError) as error:
            pairs.resolve("mlx-community/Meta-Llama-3-8B-4bit")
        assert "not on this machine; run `mlxroles models pull llama8b`" in line(error)
        assert "HF_HUB_OFFLINE is set" in line(error)
        assert pairs.find("org/name") is None

    def test_online_it_does_not_speak_of_offline(self, hub, monkeypatch):
        monkeypatch.delenv("HF_HUB_OFFLINE")
        with pytest.raises(ModelError, match=r"run `mlxroles models pull org/name`$"):
            pairs.resolve("org/name")

    def test_unknown_revision(self, hub):
        cached(hub, "org/name")
        with pytest.raises(ModelError, match="not on this machine"):
            pairs.resolve("org/name@v2")

    def test_link_to_nothing_is_a_missing_file(self, hub):
        folder = cached(hub, "org/name")
        (folder / "model.safetensors").resolve().unlink()
        with pytest.raises(ModelError, match=r"incomplete in the Hub cache \(model\.safetensors"):
            pairs.resolve("org/name")

    def test_interrupted_download(self, hub):
        folder = cached(hub, "org/name")
        (folder.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"1")
        with pytest.raises(ModelError, match="interrupted download"):
            pairs.resolve("org/name")

    def test_leftover_of_another_file_does_not_matter_when_the_index_is_complete(self, hub):
        files = {"config.json": b"{}", "model-00001-of-00001.safetensors": b"1"}
        folder = cached(hub, "org/name", files)
        index(folder, "model-00001-of-00001.safetensors")
        (folder.parent.parent / "blobs" / "abc.incomplete").write_bytes(b"1")
        assert pairs.resolve("org/name") == folder

    def test_local_folder_comes_first(self, hub, tmp_path, monkeypatch):
        cached(hub, "org/name")
        monkeypatch.chdir(tmp_path)
        plain(tmp_path / "org" / "name")
        assert pairs.resolve("org/name") == Path("org/name")

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"HF_HUB_CACHE": "/a"}, "/a"),
            ({"HUGGINGFACE_HUB_CACHE": "/b"}, "/b"),
            ({"HF_HOME": "/c"}, "/c/hub"),
            ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
            ({"HOME": "/e"}, "/e/.cache/huggingface/hub"),
        ],
    )
    def test_place_of_the_cache(self, monkeypatch, variables, expected):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert snapshots.hub_cache() == Path(expected)

    @pytest.mark.parametrize(
        "text", ["org", "org/name/more", "../name", "org/..", "/abs/path", "org/na me", "", "a/b@"]
    )
    def test_what_is_no_hub_id(self, text):
        assert snapshots.hub_id(text) is None


class TestConfig:
    @pytest.mark.parametrize(
        ("text", "said"),
        [("{", "not valid JSON"), ("[1]", "found list"), ("[" * 99999, "not valid")],
    )
    def test_mistakes_are_named(self, tmp_path, text, said):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=said):
            snapshots.read_config(tmp_path)

    def test_absent(self, tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            snapshots.read_config(tmp_path)

    def test_object(self, tmp_path):
        assert snapshots.read_config(plain(tmp_path)) == {"model_type": "llama"}
