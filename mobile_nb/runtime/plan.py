"""What goes where, in GB, before anything is allocated: from a model's config alone, without its weights.

print(plan("allenai/OLMoE-1B-7B-0924", hardware="rtx3060-pcie3", context=4096))
"""

from __future__ import annotations

import copy
import html
from dataclasses import dataclass
from pathlib import Path

import torch

from ..hardware import Geometry, Hardware
from ..memory.codecs import beside, coded
from ..memory.host import host_gb
from ..model.context import cache_bytes, longest
from ..model.find import folder_of, why
from ..model.load import OtherLoader, as_dtype, config_of, unpacking
from ..model.skeleton import expert_layouts, skeleton
from ..policies import Full
from ..policies.codec import Codec
from ..vocabulary import MobileError, whole
from .config import MobileConfig, choose_slots
from .forms import Forms
from .offloaded import DEFAULT_HARDWARE

USABLE = 0.9  # of a device's memory; the rest is for activations, kernels and the desktop, as in `offload`


@dataclass(frozen=True)
class Plan:
    """Where a model's weights and its context go. All sizes are GB (1e9 bytes).

    Attributes:
        model, dtype, hardware: their names.   context: tokens in the KV cache.
        attention_gb: attention, norms, routers, shared experts, dense layers.
        embeddings_gb: input and output embeddings, once where they are tied.
        cache_gb: the KV cache of one text of `context` tokens.
        slots: device slots of each MoE layer.   layers, experts: MoE layers, and routed experts of each.
        slots_gb: all device slots.   slots_chosen: how their number came about.
        device_gb: the device's memory; None for a budget on no particular device.
        arenas_gb: all routed experts, in host memory.   page_locked: whether that memory will be page-locked here.
        host_gb: this machine's memory; None where the system does not say.
        device_short_gb, host_short_gb: what is too much for the device, and for the host; 0 where it fits.
    """

    model: str
    dtype: str
    hardware: str
    context: int
    attention_gb: float
    embeddings_gb: float
    cache_gb: float
    slots: int
    layers: int
    experts: int
    slots_gb: float
    slots_chosen: str
    device_gb: float
    arenas_gb: float
    page_locked: bool
    host_gb: float | None

    @property
    def together_gb(self) -> float:
        """All that is on the device."""
        return self.attention_gb + self.embeddings_gb + self.cache_gb + self.slots_gb

    @property
    def device_short_gb(self) -> float:
        return max(0.0, self.together_gb - self.device_gb)

    @property
    def host_short_gb(self) -> float:
        return max(0.0, self.arenas_gb - self.host_gb) if self.host_gb else 0.0

    @property
    def fits(self) -> bool:
        return not self.device_short_gb and not self.host_short_gb

    @property
    def title(self) -> str:
        return f"{self.model} in {self.dtype} on {self.hardware}"

    def rows(self) -> list[tuple[str, str, float, str]]:
        """(where, what, GB, remark) of each part."""
        kind = "page-locked" if self.page_locked else "pageable"
        return [
            ("device", "attention and other weights", self.attention_gb, ""),
            ("device", "embeddings", self.embeddings_gb, ""),
            ("device", f"KV cache of {self.context:,} tokens", self.cache_gb, ""),
            ("device", f"slots, {self.layers} layers x {self.slots}", self.slots_gb, self.slots_chosen),
            ("device", "together", self.together_gb, _of(self.device_gb, self.device_short_gb, self.together_gb)),
            ("host", f"arenas, {self.layers} layers x {self.experts}", self.arenas_gb, kind),
            ("host", "together", self.arenas_gb, _of(self.host_gb, self.host_short_gb, self.arenas_gb)),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        wide = max(len(what) for _, what, _, _ in rows)
        lines = [f"{where:6}  {what:{wide}}  {gb:8.2f} GB  {remark}".rstrip() for where, what, gb, remark in rows]
        return "\n".join([self.title, *lines])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{where}</td><td>{html.escape(what)}</td><td style='text-align:right'>{gb:.2f}</td>"
            f"<td style='text-align:left'>{html.escape(remark)}</td></tr>"
            for where, what, gb, remark in self.rows()
        )
        head = "<tr><th></th><th></th><th>GB</th><th></th></tr>"
        return f"<table><caption>{html.escape(self.title)}</caption>{head}{cells}</table>"


def plan(
    model,
    *,
    slots: int | None = None,
    budget_gb: float | None = None,
    codec: Codec | None = None,
    context: int = 4096,
    hardware: Hardware | str | None = None,
    dtype: str | torch.dtype | None = None,
) -> Plan:
    """What a model will need on the device and in host memory; nothing is allocated and no weight is read.

    Args:
        model: a name as `load` takes it (of a hub id only the config is fetched), a transformers config, or a model.
        slots, budget_gb: device slots of each layer, or device memory for them in GB, as in `MobileConfig`. Neither:
            what 90 % of the device's memory leaves beside weights, embeddings and cache, or one slot if that is none.
        codec: the form of the experts in slots and on the link, as in `MobileConfig`; None for full. The host holds the
            full ones beside it.
        context: tokens in the KV cache; at most the model's own longest count.
        hardware: a `Hardware` or the name of a preset. None: this machine's CUDA device, else an RTX 4080 as `offload`
            simulates it.
        dtype: of the weights; None for the config's own, or bfloat16 where it names none.

    Raises:
        MobileError: no such model, one without fused experts, or a budget below one slot: the sentence names the
            smallest that is enough.
        TypeError, ValueError: an argument that cannot be.
    """
    context = whole("context", context, hint="tokens in the KV cache")
    codec = Full() if codec is None else codec
    wanted = MobileConfig(slots=slots, budget_gb=budget_gb, codec=codec)
    dtype = as_dtype("auto" if dtype is None else dtype)
    title, config = _config(model)
    if dtype == "auto" and isinstance(model, torch.nn.Module):
        dtype = model.dtype
    bones = _skeleton(title, config, dtype)
    layouts = list(expert_layouts(bones).values())
    if not layouts:
        raise MobileError(f"{type(bones).__name__} has no fused experts, so there is nothing to plan: it is dense.")
    card = _card(hardware)
    context = longest(config, context)
    layout, count = layouts[0][2], layouts[0][1]
    arenas = sum(experts * each.nbytes for _, experts, each in layouts) / 1e9
    sizes, forms = coded(codec, layout), Forms(codec, len(layouts), count)
    routed = {id(p) for module, _, each in layouts for p in (getattr(module, name) for name, _, _ in each.parts)}
    embeddings = {id(m.weight): m.weight.nbytes for m in _embeddings(bones)}
    rest = sum(p.nbytes for p in bones.parameters() if id(p) not in routed and id(p) not in embeddings)
    rest += sum(buffer.nbytes for buffer in bones.buffers())
    other_gb, embeddings_gb = rest / 1e9, sum(embeddings.values()) / 1e9
    cache_gb = cache_bytes(bones, context) / 1e9
    geometry = Geometry(
        name=title,
        moe_layers=len(layouts),
        num_experts=count,
        top_k=1,
        expert_params=layout.weights,
        layer_params=0,
        head_params=0,
        bytes_per_weight=layout.nbytes / layout.weights,
    )
    gb = [layout.weights * (each or geometry.bytes_per_weight) / 1e9 for each in sizes]  # of an expert in each form
    arenas += beside(codec, layout, forms.counts) * len(layouts) / 1e9
    free_gb = USABLE * card.device_gb - other_gb - embeddings_gb - cache_gb
    if slots is budget_gb is None and free_gb < float((forms.sizes(1) @ gb).sum()):
        slots, chosen = 1, f"1 of {count} experts a layer, the fewest that work"
    else:
        slots, chosen = choose_slots(wanted, geometry, count, free_gb, sizes)
    return Plan(
        model=title,
        dtype=str(bones.dtype).removeprefix("torch."),
        hardware=f"{card.name} ({card.device_gb:.3g} GB)",
        context=context,
        attention_gb=other_gb,
        embeddings_gb=embeddings_gb,
        cache_gb=cache_gb,
        slots=slots,
        layers=len(layouts),
        experts=count,
        slots_gb=float((forms.sizes(slots) @ gb).sum()),
        slots_chosen=chosen,
        device_gb=card.device_gb,
        arenas_gb=arenas,
        page_locked=torch.cuda.is_available(),
        host_gb=host_gb(),
    )


def _config(model) -> tuple[str, object]:
    """What to call the model, and a config of its own to work on."""
    if isinstance(model, str):
        try:
            return Path(model).name, config_of(folder_of(model, weights=False))
        except MobileError:
            raise
        except Exception as problem:  # transformers and the hub raise OSError, ValueError, KeyError and more
            raise MobileError(why(model, problem)) from problem
    config = copy.deepcopy(getattr(model, "config", model))
    if not hasattr(config, "get_text_config"):
        raise TypeError(f"plan takes a name, a transformers config or a model, got {model!r}.")
    return Path(config.name_or_path or type(config).__name__.removesuffix("Config")).name, config


def _skeleton(title: str, config, dtype):
    try:
        unpacking(config)
        return skeleton(config, dtype if isinstance(dtype, torch.dtype) else config.dtype or torch.bfloat16)
    except OtherLoader as problem:
        raise MobileError(f"{title} is quantised in a way that only transformers itself unpacks: no plan.") from problem
    except Exception as problem:
        said = " ".join(str(problem).split())[:200].rstrip(".")
        raise MobileError(f"{title} cannot be planned ({type(problem).__name__}: {said}).") from problem


def _embeddings(model):
    return [m for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None]


def _card(hardware) -> Hardware:
    if hardware is None and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Hardware(properties.name, 1, 1, 1, properties.total_memory / 1e9)  # only its memory counts here
    hardware = DEFAULT_HARDWARE if hardware is None else hardware
    card = Hardware.preset(hardware) if isinstance(hardware, str) else hardware
    if not isinstance(card, Hardware):
        raise TypeError(f"hardware must be a Hardware or the name of a preset, got {hardware!r}.")
    return card


def _of(there: float | None, short: float, used: float) -> str:
    if there is None:
        return ""
    return f"of {there:.3g}: {short:.2f} GB too much" if short else f"of {there:.3g}, {there - used:.2f} left"


__all__ = ["Plan", "plan"]
