"""Start a model from the trained weights of tiny-olmoe, also one of another architecture; knows nothing of training.

Rows of the embedding and the head are matched by the token that they stand for. Experts are taken over one by one;
where the new ones are half as wide, each old expert becomes two. What the architectures do not share is brought as near
as it goes (norms of queries and keys, the heads of latent attention) or left random (dense layers); shared experts
start as zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from mobile_nb.analysis import tasks

ROWS = ("model.embed_tokens.weight", "lm_head.weight")
State = dict[str, Tensor]


def rows(new: Tensor, old: Tensor, pieces: dict[str, int], known: dict[str, int]) -> Tensor:
    """`new` [V, H] with the row of each piece that `known` has taken from `old`."""
    shared = [(row, known[piece]) for piece, row in pieces.items() if piece in known]
    to, where = (torch.tensor(column) for column in zip(*shared, strict=True))
    made = new.clone()
    made[to] = old[where].to(new)
    return made


@torch.inference_mode()
def sizes(source: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """For each norm of queries and keys and for each `v_proj`, by name, the mean root mean square of what comes in."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, inputs, _o, name=name: found.setdefault(name, []).append(inputs[0].square().mean(-1).sqrt())
        )
        for name, module in source.named_modules()
        if name.endswith(("q_norm", "k_norm", "v_proj"))
    ]
    for problem in tasks.load("word-problems", split="train", n=50):
        source(**tokenizer(problem.prompt + problem.solution, return_tensors="pt"))
    for handle in handles:
        handle.remove()
    return {name: torch.cat([each.flatten() for each in kept]).mean() for name, kept in found.items()}


def _attention(state: State, given: State, layer: str, size: dict[str, Tensor]) -> None:
    """Queries and keys whose norm goes over all heads, in an architecture without one or with one a head."""
    for kind in "qk":
        projection, norm = f"{layer}.self_attn.{kind}_proj.weight", f"{layer}.self_attn.{kind}_norm"
        if projection not in state or state[projection].shape != given[projection].shape:
            continue
        weight = given[f"{norm}.weight"]
        if f"{norm}.weight" in state:  # one a head
            heads = weight.numel() // state[f"{norm}.weight"].numel()
            state[projection] = given[projection]
            state[f"{norm}.weight"] = weight.view(heads, -1).mean(0)
        else:  # none
            state[projection] = given[projection] * (weight / size[norm])[:, None]
        if f"{layer}.self_attn.{kind}_proj.bias" in state:
            state[f"{layer}.self_attn.{kind}_proj.bias"].zero_()
    for kind in "vo":
        projection = f"{layer}.self_attn.{kind}_proj.weight"
        if projection in state and state[projection].shape == given[projection].shape:
            state[projection] = given[projection]


def _latent(state: State, given: State, layer: str, size: dict[str, Tensor], heads: int, nope: int) -> None:
    """Multi-head latent attention whose one rotary key is as wide as all heads' keys together.

    Pair j of head h becomes pair `j * heads + h` of the rotary key and only head h asks for it. Its frequency is the
    old one for head 0 and up to 35 % lower for the others. The latent holds the normed input itself, so values stay.
    """
    q, k, v, o = (given[f"{layer}.self_attn.{kind}_proj.weight"] for kind in "qkvo")
    q, k = (each * (given[f"{name}.weight"] / size[name])[:, None] for each, name in
            ((q, f"{layer}.self_attn.q_norm"), (k, f"{layer}.self_attn.k_norm")))  # fmt: skip
    hidden, dim = k.size(1), k.size(0) // heads
    inward, outward = f"{layer}.self_attn.kv_a_proj_with_mqa.weight", f"{layer}.self_attn.kv_b_proj.weight"
    rank, rotary = state[outward].size(1), state[inward].size(0) - state[outward].size(1)
    if rank != hidden or rotary != heads * dim:
        return
    pairs = k.view(heads, 2, dim // 2, hidden).permute(2, 0, 1, 3)  # [pair, head, part, H]
    state[inward] = torch.cat([torch.eye(hidden), pairs.reshape(rotary, hidden)])
    state[f"{layer}.self_attn.kv_a_layernorm.weight"] = size[f"{layer}.self_attn.v_proj"].expand(rank).clone()
    both = state[outward].view(heads, -1, rank).clone()  # [heads, nope + value, rank]
    both[:, nope:] = v.view(heads, -1, hidden)
    state[outward], state[f"{layer}.self_attn.o_proj.weight"] = both.flatten(0, 1), o
    asked = state[f"{layer}.self_attn.q_proj.weight"].view(heads, nope + rotary, hidden).clone()
    sharper = ((nope + rotary) / dim) ** 0.5  # both architectures divide by the root of a head's width
    for head, one in enumerate(q.view(heads, 2, dim // 2, hidden).transpose(1, 2)):  # [pair, part, H]
        wide = torch.zeros(dim // 2, heads, 2, hidden)
        wide[:, head] = one * sharper
        asked[head, nope:] = wide.reshape(rotary, hidden)
    state[f"{layer}.self_attn.q_proj.weight"] = asked.flatten(0, 1)


def _experts(state: State, given: State, mlp: str, scale: float) -> None:
    """Routers and experts, as many as there are; halved where the new ones are half as wide."""
    gate, inward, outward = f"{mlp}.gate.weight", f"{mlp}.experts.gate_up_proj", f"{mlp}.experts.down_proj"
    if inward not in state:
        return
    old_in, old_out, router = given[inward], given[outward], given[gate]
    wide, width = old_out.size(-1), state[outward].size(-1)
    if width * 2 == wide:
        halves = old_in.unflatten(1, (2, 2, width))  # [E, gate or up, half, width, H]
        old_in = halves.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        old_out = old_out.unflatten(2, (2, width)).transpose(1, 2).flatten(0, 1)
        router = router.repeat_interleave(2, dim=0)
        router = router + 0.1 * router.std() * torch.randn_like(router)
    count = state[gate].size(0)
    state[inward], state[outward], state[gate] = old_in[:count], old_out[:count] * scale, router[:count]
    for name in state:
        if name.startswith(f"{mlp}.shared_expert") and name.endswith("down_proj.weight"):
            state[name] = torch.zeros_like(state[name])


def start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Take over what fits from the OLMoE in `folder`, or all of a model of the same architecture."""
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reader = AutoTokenizer.from_pretrained(folder)
    state, given = model.state_dict(), source.state_dict()
    same = model.config.model_type == source.config.model_type
    for name, value in state.items():
        if name in ROWS:
            state[name] = rows(value, given[name], tokenizer.get_vocab(), reader.get_vocab())
        elif name in given and given[name].shape == value.shape and (same or ".mlp." not in name):
            state[name] = given[name]
    if same:
        model.load_state_dict(state)
        return
    size = sizes(source, reader)
    # What the K weights add up to on either side: experts that are weighted more must say less.
    scale = 1 / getattr(model.config, "routed_scaling_factor", 1.0)
    if getattr(model.config, "norm_topk_prob", False):
        scale = model.config.num_experts_per_tok / 2 / source.config.num_experts
    for layer in range(source.config.num_hidden_layers):
        if hasattr(model.config, "kv_lora_rank"):
            heads, nope = model.config.num_attention_heads, model.config.qk_nope_head_dim
            _latent(state, given, f"model.layers.{layer}", size, heads, nope)
        _attention(state, given, f"model.layers.{layer}", size)
        _experts(state, given, f"model.layers.{layer}.mlp", scale)
    model.load_state_dict(state)
