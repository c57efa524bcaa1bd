"""Broken, foreign and forbidden files: one sentence each, and nothing that was half read stays in memory."""

import builtins
import gc
import io
import json
import os
import shutil
import weakref

import pytest
import torch
from checkpoints import add_tokenizer, header, rewrite, save, shards
from helpers import make, refused
from safetensors.torch import load_file, save_file

from mobile_nb import MobileError, load, offload
from mobile_nb.memory import store
from mobile_nb.model import load as load_module
from mobile_nb.model.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save(tmp_path_factory.mktemp("intact"))


@pytest.fixture
def folder(intact, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(intact, tmp_path / "model")


def refuses(folder, *fragments):
    """Loading must end with a MobileError of one sentence that does not quote a library's traceback."""
    with refused(*fragments, kinds=MobileError) as caught:
        load(str(folder), progress=False)
    assert "Error(" not in str(caught.value) and "safetensors_rust" not in str(caught.value)
    return caught.value


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())


def write_index(folder, **changes):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_of(folder) | changes))


# -- shards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 5, 60, -1])
def test_a_truncated_shard(folder, left):
    victim = shards(folder)[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:left])
    refuses(folder, victim.name, "truncated" if left == -1 else "damaged")
    victim.write_bytes(whole)
    load(str(folder))


def test_a_shard_with_more_than_its_header_says(folder):
    victim = shards(folder)[1]
    victim.write_bytes(victim.read_bytes() + b"more")
    refuses(folder, victim.name, "damaged", "promises")


def test_a_missing_shard(folder):
    victim = shards(folder)[2]
    victim.unlink()
    refuses(folder, victim.name, "not in the folder")


def test_a_shard_that_shrinks_while_it_is_read(folder, monkeypatch):
    real = Checkpoint._read

    def read(self, entry, offset, target):
        for path in shards(folder):
            os.truncate(path, min(path.stat().st_size, 3000))
        real(self, entry, offset, target)

    monkeypatch.setattr(Checkpoint, "_read", read)
    refuses(folder, "became shorter")


def spoil(folder, change):
    """Changes the description of the first tensor of a shard."""
    path = shards(folder)[1]
    described, data = header(path)
    key = next(key for key in described if key != "__metadata__")
    change(described[key])
    rewrite(path, described, data)
    return path.name


HEADERS = {
    "offsets before the file": lambda d: d.update(data_offsets=[-8, d["data_offsets"][1] - 8]),
    "offsets that do not fit the shape": lambda d: d.update(data_offsets=[0, 4]),
    "offsets that are words": lambda d: d.update(data_offsets=["a", "b"]),
    "a shape that is negative": lambda d: d.update(shape=[-1, *d["shape"]]),
    "a shape that is none": lambda d: d.update(shape=None),
    "no dtype": lambda d: d.pop("dtype"),
    "a field nobody knows": lambda d: d.update(colour="red"),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(folder, change):
    refuses(folder, spoil(folder, change), "damaged")


def test_a_header_that_points_behind_the_end(folder):
    shift = 10**9
    name = spoil(folder, lambda d: d.update(data_offsets=[at + shift for at in d["data_offsets"]]))
    refuses(folder, name, "truncated")


def test_a_dtype_that_torch_does_not_have(folder):
    refuses(folder, spoil(folder, lambda d: d.update(dtype="F4")), "kind F4")


def test_a_file_of_another_format(folder):
    victim = shards(folder)[1]
    victim.write_bytes(b"GIF89a" * 100)
    refuses(folder, victim.name, "damaged")
    victim.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refuses(folder, victim.name, "git lfs pull")


# -- the index -----------------------------------------------------------------------------------------------------


def test_an_index_of_another_checkpoint(folder):
    where = index_of(folder)["weight_map"]
    first, second = shards(folder)[:2]
    key = next(key for key, name in where.items() if name == first.name)
    write_index(folder, weight_map=where | {key: second.name})
    refuses(folder, "index", key, "another checkpoint")
    write_index(folder, weight_map=where | {"model.layers.9.mlp.weight": second.name})
    refuses(folder, "model.layers.9.mlp.weight")
    write_index(folder, weight_map=where | {key: "model-00099-of-00099.safetensors"})
    refuses(folder, "model-00099-of-00099.safetensors", "not in the folder")


@pytest.mark.parametrize("where", ["../secret.safetensors", "/etc/passwd", "sub\\x.safetensors", "model.bin", 7])
def test_an_index_that_points_out_of_the_folder(folder, where):
    write_index(folder, weight_map=index_of(folder)["weight_map"] | {"x": where})
    refuses(folder, "index")


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "\x00"])
def test_a_damaged_index(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    refuses(folder, "index", "damaged")


# -- weights that do not belong to the config ----------------------------------------------------------------------


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"intermediate_size": 25}, "experts.0"),
        ({"hidden_size": 64}, "64"),
        ({"vocab_size": 90}, "[90, 32]"),
        ({"num_key_value_heads": 1}, "self_attn.k_"),
    ],
)
def test_wrong_shapes(folder, changes, key):
    change_config(folder, **changes)
    refuses(folder, "shape", key, "config.json")


@pytest.mark.parametrize("experts", [6, 9])
def test_a_wrong_number_of_experts(folder, experts):
    change_config(folder, num_experts=experts)
    refuses(folder, "gate", str(experts))


def test_an_expert_that_is_not_there(folder):
    keep = {key: where for key, where in index_of(folder)["weight_map"].items() if "layers.1.mlp.experts.5." not in key}
    write_index(folder, weight_map=keep)
    refuses(folder, "layers.1.mlp.experts", "shape")


def test_one_expert_of_another_shape(folder):
    for path in shards(folder):
        weights = load_file(path)
        for key in weights:
            if key.endswith("layers.1.mlp.experts.5.up_proj.weight"):
                weights[key] = weights[key][:-1].contiguous()
                save_file(weights, path, metadata={"format": "pt"})
    refuses(folder, "layers.1.mlp.experts.5", "shape")


def test_a_config_with_more_layers_than_the_weights(folder):
    change_config(folder, num_hidden_layers=4)
    refuses(folder, "lacks", "layers.3", "more")


def test_weights_of_another_family(folder):
    change_config(folder, model_type="mixtral", num_local_experts=8, architectures=["MixtralForCausalLM"])
    refuses(folder, "lacks", "MixtralForCausalLM")


def test_weights_that_nobody_asked_for_are_named(folder):
    save_file({"model.layers.7.surprise": torch.zeros(3)}, folder / "more.safetensors")
    write_index(folder, weight_map=index_of(folder)["weight_map"] | {"model.layers.7.surprise": "more.safetensors"})
    with pytest.warns(UserWarning, match=r"model\.layers\.7\.surprise"):
        load(str(folder))


# -- not a model's folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_not_opened(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = save(tmp_path / "model")
    for path in [*shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    torch.save({"model.embed_tokens.weight": Bomb()}, folder / name)
    refuses(folder, name, "pickle")
    assert not (tmp_path / "exploded").exists()


def test_folders_and_names_that_are_no_model(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "config.json")
    for path in [*shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    refuses(folder, "no weights")
    refuses(folder / "config.json", "is a file")
    refuses(tmp_path / "nowhere", "no model")
    refuses("someone/nothing", "no model", "network")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "unheard-of"}', '{"architectures": []}'])
def test_a_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    refuses(folder, folder.name)


def test_a_folder_without_a_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()
    refuses(folder, "no tokenizer")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "a shard"])
def test_a_path_without_permission(folder, file, monkeypatch):
    """Asked of a stand-in for the system: root may read everything."""
    forbidden, real = shards(folder)[1] if file == "a shard" else folder / file, io.open

    def guarded(path, *facts, **named):
        if str(path) == str(forbidden):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *facts, **named)

    assert forbidden.is_file()
    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr(io, "open", guarded)
    assert "permission denied" in str(refuses(folder, forbidden.name, "cannot be read")).lower()


def test_a_dense_model_is_loaded_and_offload_refuses_it(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = load(str(save(tmp_path, model=LlamaForCausalLM(LlamaConfig(vocab_size=101, **sizes)))))[0]
    with refused("experts"), offload(model):
        pass


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.fixture
def alive(monkeypatch):
    """Counts the arenas and models of loads that somebody still holds."""
    references, real_memory, real_skeleton = [], store.host_memory, load_module.skeleton

    def memory(*facts, **named):
        buffer, locked = real_memory(*facts, **named)
        references.append(weakref.ref(buffer))
        return buffer, locked

    def skeleton(*facts, **named):
        model = real_skeleton(*facts, **named)
        references.append(weakref.ref(model))
        return model

    monkeypatch.setattr(store, "host_memory", memory)
    monkeypatch.setattr(load_module, "skeleton", skeleton)

    def count(*, collect=True):
        if collect:
            gc.collect()
        assert references, "nothing was ever begun"
        return sum(reference() is not None for reference in references)

    return count


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=repr)
def test_a_read_that_fails_half_way_keeps_nothing(folder, monkeypatch, alive, error):
    reads, real = [], Checkpoint._read

    def read(self, entry, offset, target):
        reads.append(entry)
        if len(reads) == 40:
            assert alive(collect=False) > 3, "arenas and model must be there at this point"
            raise error
        real(self, entry, offset, target)

    monkeypatch.setattr(Checkpoint, "_read", read)
    with pytest.raises((MobileError, KeyboardInterrupt)) as caught:
        load(str(folder))
    assert alive() == 0, f"{caught.value!r} keeps memory"  # while somebody still looks at the error


def test_a_loaded_model_is_let_go_with_its_last_reference(folder, alive):
    model = load(str(folder))[0]
    assert alive(collect=False) == 4, "three arenas and a model"
    del model
    assert alive() == 0


def test_weights_that_do_not_fit_are_refused_before_anything_is_allocated(folder, monkeypatch):
    change_config(folder, intermediate_size=25)

    def forbidden(*facts, **named):
        raise AssertionError("allocated before the shapes were compared")

    monkeypatch.setattr(store, "host_memory", forbidden)
    refuses(folder, "shape")


def test_no_memory_is_a_sentence(folder, monkeypatch):
    def none_left(nbytes, **named):
        raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {nbytes} bytes.")

    monkeypatch.setattr(store, "host_memory", none_left)
    refuses(folder, "not enough memory", "GB")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_files_are_closed_after_every_kind_of_end(folder):
    def open_files():
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [os.readlink(link) for link in links if os.path.exists(link)]

    model = load(str(folder))[0]
    assert model and not any(str(folder) in name for name in open_files())
    os.truncate(shards(folder)[-1], 3000)
    refuses(folder)
    assert not any(str(folder) in name for name in open_files())


def test_a_checkpoint_saved_without_a_tokenizer_gets_one_later(tmp_path):
    model = make("mixtral")
    model.save_pretrained(tmp_path)
    refuses(tmp_path)
    add_tokenizer(tmp_path)
    load(str(tmp_path))
