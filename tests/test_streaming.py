"""Loading: what our reader makes of a checkpoint is what transformers makes of it, and `offload` takes it as it is."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import FAMILIES, SHARD, save, shards
from helpers import GREEDY, gap, make, plain, prompt, refused
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, dynamic_module_utils

from mobile_nb import load, offload, systems
from mobile_nb.memory import host
from mobile_nb.model import load as load_module
from mobile_nb.model import mapping, stream
from mobile_nb.model.adapters import find_layers
from mobile_nb.model.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name -> a folder with that family in float32 shards, written once."""
    folders = {}

    def folder(name):
        if name not in folders:
            folders[name] = save(tmp_path_factory.mktemp(name), name)
            assert len(shards(folders[name])) > 3
        return folders[name]

    return folder


@pytest.fixture(scope="module")
def reference(saved):
    """name -> what from_pretrained makes of that folder, once; nobody changes it."""
    models = {}
    return lambda name: models[name] if name in models else models.setdefault(name, theirs(saved(name)))


def theirs(folder, dtype="auto", **named):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **named).eval()


@torch.no_grad()
def same(ours, other, *, logits=True):
    """Every parameter, buffer and flag is equal, and every logit but for rounding: where a matrix lies in
    memory decides on some processors how its product is added up."""
    for mine, yours in (
        (dict(ours.state_dict()), dict(other.state_dict())),
        (dict(ours.named_buffers()), dict(other.named_buffers())),
    ):
        assert mine.keys() == yours.keys()
        for name, tensor in yours.items():
            assert mine[name].dtype == tensor.dtype, name
            assert torch.equal(mine[name], tensor), name
    assert {n: p.requires_grad for n, p in ours.named_parameters()} == {
        n: p.requires_grad for n, p in other.named_parameters()
    }
    assert type(ours) is type(other) and not any(module.training for module in ours.modules())
    if logits:
        wanted = other(prompt(9)).logits
        assert gap(ours(prompt(9)).logits, wanted) <= 16 * torch.finfo(wanted.dtype).eps * wanted.abs().max()


# -- the same model ------------------------------------------------------------------------------------------------


@every_family
def test_shards_give_the_model_of_from_pretrained(saved, reference, name):
    ours, tokenizer = load(str(saved(name)))
    same(ours, reference(name))
    assert tokenizer("w3 w4").input_ids == [6, 7]
    assert ours.generation_config == reference(name).generation_config and ours.generation_config.max_length == 77


@every_family
def test_a_single_file_in_another_dtype_gives_the_model_of_from_pretrained(tmp_path, name):
    folder = save(tmp_path, name, shard="1GB")
    assert [path.name for path in shards(folder)] == ["model.safetensors"]
    same(load(str(folder), dtype="bfloat16")[0], theirs(folder, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_half_precision_on_disk_is_converted(tmp_path, dtype):
    folder = save(tmp_path, model=make("qwen2_moe").to(torch.bfloat16))
    same(load(str(folder), dtype=dtype)[0], theirs(folder, dtype))
    assert load(str(folder))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoe"])
def test_tied_embeddings_are_one_tensor(tmp_path, name):
    folder = save(tmp_path, name, tie_word_embeddings=True)
    assert not any("lm_head" in key for path in shards(folder) for key in load_file(path))
    ours = load(str(folder))[0]
    assert ours.lm_head.weight is ours.model.embed_tokens.weight
    same(ours, theirs(folder))


def test_parameters_that_a_family_keeps_in_float32_stay_so(tmp_path, monkeypatch):
    folder = save(tmp_path)
    from transformers import OlmoeForCausalLM

    monkeypatch.setattr(OlmoeForCausalLM, "_keep_in_fp32_modules_strict", ["q_norm"])
    ours = load(str(folder), dtype="bfloat16")[0]
    assert ours.model.layers[0].self_attn.q_norm.weight.dtype == torch.float32
    same(ours, theirs(folder, torch.bfloat16), logits=False)


def dense():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=101, **sizes))


def test_a_dense_model_is_loaded_too(tmp_path):
    folder = save(tmp_path, model=dense())
    same(load(str(folder))[0], theirs(folder))


def test_the_embedded_model_comes_the_same_way_and_in_silence(capfd):
    from mobile_nb.files import data_path

    if not data_path("tiny-olmoe", "model.safetensors").is_file():
        pytest.skip("the trained model is not in data/")
    ours = load("tiny-olmoe", device="cpu")[0]
    said = capfd.readouterr()
    same(ours, theirs(data_path("tiny-olmoe"), torch.float32))
    assert said.out == said.err == "" and ours.name_or_path == "tiny-olmoe"


# -- other forms on disk -------------------------------------------------------------------------------------------


def restored(folder, change):
    """Rewrites every tensor of a folder as `change(key, tensor)` says: a dict of what takes its place."""
    for path in shards(folder):
        new = {}
        for key, tensor in load_file(path).items():
            new |= {name: value.contiguous() for name, value in change(key, tensor).items()}
        save_file(new, path, metadata={"format": "pt"})


def quantised(folder, **described):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": described}))


@contextlib.contextmanager
def conversions(monkeypatch):
    """Notes which experts transformers' operations run on; None for all of a parameter at once."""
    seen, real = [], mapping.Recipe.make

    def make_and_note(recipe, tensors, model):
        if "experts" in recipe.name:
            seen.append({len(found) for found in tensors.values()} | {found[0].shape[0] for found in tensors.values()})
        return real(recipe, tensors, model)

    monkeypatch.setattr(mapping.Recipe, "make", make_and_note)
    yield seen


def test_mxfp4_is_unpacked_one_expert_at_a_time(tmp_path, monkeypatch):
    from transformers import Mxfp4Config

    folder = save(tmp_path, shard="1GB", model=make("gpt_oss", hidden_size=64, intermediate_size=32).bfloat16())
    generator = torch.Generator().manual_seed(0)

    def pack(key, tensor):
        if not re.search(r"experts\.(gate_up|down)_proj$", key):
            return {key: tensor}
        experts, rows, columns = tensor.shape  # packed the other way round, 32 numbers share a scale
        size = experts, columns, rows // 32
        blocks = torch.randint(0, 256, (*size, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 126, size, dtype=torch.uint8, generator=generator)
        return {f"{key}_blocks": blocks, f"{key}_scales": scales}

    restored(folder, pack)
    quantised(folder, quant_method="mxfp4", modules_to_not_convert=["model.embed_tokens", "lm_head"])
    with conversions(monkeypatch) as seen:
        ours = load(str(folder))[0]
    assert len(seen) == 3 * 8 * 2 and all(each == {1} for each in seen), "one expert's tensors at a time"
    same(ours, theirs(folder, quantization_config=Mxfp4Config(dequantize=True)))


def test_8_bit_floats_are_unpacked_one_expert_at_a_time(tmp_path, monkeypatch):
    from transformers import FineGrainedFP8Config

    folder = save(tmp_path, model=make("qwen3_moe", hidden_size=32, moe_intermediate_size=16).bfloat16())
    generator = torch.Generator().manual_seed(0)

    def pack(key, tensor):
        if not key.endswith("proj.weight"):
            return {key: tensor}
        scales = 0.5 + torch.rand(-(-tensor.shape[0] // 16), -(-tensor.shape[1] // 16), generator=generator)
        return {key: tensor.to(torch.float8_e4m3fn), f"{key}_scale_inv": scales}

    restored(folder, pack)
    (folder / "model.safetensors.index.json").unlink()
    save_file({k: v for path in shards(folder) for k, v in load_file(path).items()}, folder / "model.safetensors")
    quantised(folder, quant_method="fp8", weight_block_size=[16, 16], activation_scheme="dynamic")
    with conversions(monkeypatch) as seen:
        ours = load(str(folder))[0]
    assert len(seen) == 3 * 8 * 2 and all(1 in each for each in seen)
    plain_config = FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16))
    same(ours, theirs(folder, quantization_config=plain_config))


@pytest.mark.parametrize("check_dims", [False, True], ids=["one expert at a time", "all of a layer"])
def test_operations_on_fused_experts_are_those_of_transformers(saved, reference, tmp_path, monkeypatch, check_dims):
    """A family of another time: fused on disk, with the two axes of each expert the other way round."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter

    def table(model, key_mapping=None, quantizer=None, **named):
        turn = [Transpose(1, 2, check_dims=check_dims)]
        names = "gate_up_proj", "down_proj"
        return [WeightConverter(rf"mlp\.experts\.{n}_turned", f"mlp.experts.{n}", operations=turn) for n in names]

    weights = {}
    for key, tensor in reference("olmoe").state_dict().items():
        fused = re.search(r"experts\.(gate_up|down)_proj$", key)
        weights |= {f"{key}_turned": tensor.transpose(1, 2).contiguous()} if fused else {key: tensor.clone()}
    shutil.copytree(saved("olmoe"), tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", table)
    with conversions(monkeypatch) as seen:
        ours = load(str(tmp_path))[0]
    assert [8 in each for each in seen] == ([True] * 6 if check_dims else [False] * 48)
    same(ours, reference("olmoe"))


def test_a_transformers_without_the_tables_loads_by_itself(saved, reference, monkeypatch):
    def gone(*facts):
        raise ImportError("cannot import name 'get_model_conversion_mapping'")

    monkeypatch.setattr(stream, "recipes_of", gone)
    same(load(str(saved("mixtral")))[0], reference("mixtral"))


# -- each byte once, in order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_byte_is_read_once_and_in_the_order_of_the_files(saved, monkeypatch, name, dtype):
    reads, real = [], Checkpoint._read

    def read(self, entry, offset, target):
        reads.append((str(entry.path), entry.begin + offset, target.nbytes))
        real(self, entry, offset, target)

    monkeypatch.setattr(Checkpoint, "_read", read)
    load(str(saved(name)), dtype=dtype)
    assert reads == sorted(reads)
    ends = {}
    for path, begin, nbytes in reads:
        assert begin >= ends.get(path, 0), "read twice"
        ends[path] = begin + nbytes
    entries = Checkpoint.of(saved(name)).entries.values()
    assert sum(nbytes for *_, nbytes in reads) == sum(entry.nbytes for entry in entries)


def test_the_bar_counts_what_is_read_in_gb(saved, monkeypatch, capsys):
    monkeypatch.setattr(load_module, "SOON", 0)
    load(str(saved("olmoe")))
    said = capsys.readouterr().err
    gb = sum(entry.nbytes for entry in Checkpoint.of(saved("olmoe")).entries.values()) / 1e9
    assert f"{gb:.2f} of {gb:.2f} GB" in said and "left" in said and saved("olmoe").name in said
    load(str(saved("olmoe")), progress=False)
    assert capsys.readouterr().err == ""


# -- arenas --------------------------------------------------------------------------------------------------------


def lie(model):
    """Where and how every parameter lies, and which object it is."""
    return {n: (id(p), p.data_ptr(), p.stride(), p.requires_grad) for n, p in model.named_parameters()}


@every_family
def test_offload_takes_the_loaded_experts_as_they_lie_and_leaves_them_so(saved, reference, name):
    ours = load(str(saved(name)))[0]
    before = lie(ours)
    with offload(ours, systems.on_demand(slots=3)) as engine:
        for arena, layer in zip(engine._server.arenas, engine._server.layers, strict=True):
            first = getattr(layer.experts, arena.layout.parts[0][0])
            assert arena.blocks.data_ptr() == first.data_ptr(), "copied"
        written = engine.generate(prompt(), max_new_tokens=4, **GREEDY).token_ids
        inside = {n: lies for n, lies in lie(ours).items() if n in before}
        assert all(before[n] == lies for n, lies in inside.items())
    assert written == plain(reference(name), prompt(), 4)
    assert lie(ours) == before
    with pytest.raises(KeyboardInterrupt), offload(ours, systems.mobile(slots=8)):
        raise KeyboardInterrupt
    assert lie(ours) == before
    same(ours, reference(name))


def test_a_loaded_model_that_was_changed_is_packed_again(saved):
    ours = load(str(saved("olmoe")))[0].to(torch.bfloat16)
    with offload(ours, systems.on_demand(slots=2)) as engine:
        assert engine._server.arenas[0].blocks.dtype == torch.bfloat16
    assert all(p.is_contiguous() for p in ours.parameters())
    ours = load(str(saved("olmoe")))[0]
    experts = find_layers(ours)[1].experts
    with torch.no_grad():
        experts.down_proj.data = 2 * experts.down_proj.data  # it lies elsewhere now
    before, wanted = lie(ours), plain(ours, prompt(), 4)
    with offload(ours, systems.on_demand(slots=2)) as engine:
        assert engine.generate(prompt(), max_new_tokens=4, **GREEDY).token_ids == wanted
    assert lie(ours).keys() == before.keys() and plain(ours, prompt(), 4) == wanted


@every_family
def test_a_loaded_model_is_saved_as_it_was(saved, tmp_path, name):
    load(str(saved(name)))[0].save_pretrained(tmp_path, max_shard_size=SHARD)
    before, after = (
        {key: tensor for path in shards(folder) for key, tensor in load_file(path).items()}
        for folder in (saved(name), tmp_path)
    )
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


class Driver:
    """Stands in for CUDA's: notes which memory is page-locked, and may have no room."""

    def __init__(self, room=10**9):
        self.room, self.locked, self.ever = room, {}, 0

    def cudaHostRegister(self, address, nbytes, flags):
        if nbytes > self.room - sum(self.locked.values()):
            return 2
        self.locked[address] = nbytes
        self.ever += 1
        return 0

    def cudaHostUnregister(self, address):
        del self.locked[address]
        return 0


def test_page_locked_memory_is_unlocked_when_its_last_view_is_gone(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(host.torch.cuda, "cudart", lambda: driver)
    memory, locked = host.host_memory(10_000, pin=True)
    view = torch.frombuffer(memory, dtype=torch.uint8)[100:200]
    assert locked and list(driver.locked.values()) == [10_000]
    del memory
    assert driver.locked, "a view is still there"
    view.fill_(7)
    del view
    assert not driver.locked and driver.ever == 1


def test_memory_is_pageable_where_the_system_locks_no_more(monkeypatch):
    driver, forgotten = Driver(room=15_000), []
    monkeypatch.setattr(host.torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(host, "_forget_the_refusal", lambda: forgotten.append(True))
    kept, locked = host.host_memory(10_000, pin=True)
    more, also = host.host_memory(10_000, pin=True)
    assert (locked, also) == (True, False) and len(more) == 10_000 and forgotten
    assert host.host_memory(10_000)[1] is False
    del kept
    assert not driver.locked


def test_large_memory_is_whole_and_writable_and_too_much_is_a_memory_error():
    memory, locked = host.host_memory(host.HUGE + 5)
    assert len(memory) == host.HUGE + 5 and not locked
    torch.frombuffer(memory, dtype=torch.uint8).fill_(7)
    assert memory[0] == memory[-1] == 7
    with pytest.raises(MemoryError, match="bytes left"):
        host.host_memory(1 << 60)


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with one model, and no network."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--small" / "refs").mkdir()
    (tmp_path / "models--someone--small" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert constants.HF_HUB_OFFLINE
    return save(snapshot)


def test_a_hub_id_is_found_in_the_cache(hub):
    ours = load("someone/small")[0]
    same(ours, theirs(hub))
    assert ours.name_or_path == ours.config.name_or_path == "someone/small"


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("the code ran")

class TheirConfig(LlamaConfig):
    model_type = "theirs"

class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
"""


def test_code_of_the_repository_runs_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = dense()
    folder, marker = save(tmp_path / "model", model=model), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "code.TheirConfig", "AutoModelForCausalLM": "code.TheirModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    with refused("Python code of its own", "trust_remote_code=True"):
        load(str(folder))
    assert not marker.exists()
    ours = load(str(folder), trust_remote_code=True)[0]
    assert marker.exists() and type(ours).__name__ == "TheirModel"
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in ours.named_parameters())
    (folder / "model.safetensors.index.json").unlink()
    weights = {key: tensor for path in shards(folder) for key, tensor in load_file(path).items()}
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("does not hold"):
        load(str(folder), trust_remote_code=True)


# -- figures -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["per-expert", "fused"])
def test_a_large_model_takes_little_more_than_its_own_memory_and_the_time_to_read_it(layout, tmp_path):
    recipe, out = ROOT / "data" / "recipes" / "measure_loading.py", tmp_path / "loading.json"
    options = ["--layouts", layout, "--caches", "warm", "--ways", "safetensors", "mobile_nb", "--runs", "8"]
    subprocess.run([sys.executable, recipe, *options, "--folder", tmp_path, "--json", out], check=True, timeout=900)
    alone, ours = json.loads(out.read_text())["rows"]
    assert ours["model_bytes"] >= 1.5e9 and ours["peak_over_model"] <= 1.1
    # CPU time, for a machine that others use too; on a quiet one the wall clock says the same
    assert alone["least_cpu_seconds"] / ours["least_cpu_seconds"] >= 0.8 * 0.9
