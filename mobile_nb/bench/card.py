"""All rows of a table on the card at hand: models at their real sizes x slots x systems, within a time limit.

Random weights have flat routing and no confidence, so two things are scripted, and every row says which: the tokens
that fall back (`policies.Scheduled`) and the routing (a recording, see `scripted`; or the random routers' own).
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from ..hardware import Geometry, Hardware
from ..memory.host import current
from ..model.adapters import find_layers
from ..model.load import load
from ..model.published import PUBLISHED, layers_said, layers_that_fit, random_published
from ..runtime.offloaded import DEFAULT_HARDWARE, Offloaded
from ..trace import Trace
from ..vocabulary import MobileError, number, whole
from .bounds import Yardstick
from .link import link_rates
from .machine import conditions
from .rivals import by_accelerate, end_before, experts_gb, tokens_by
from .rows import ALONE, ALONE_LITTLE, Job, Setting, jobs, run
from .scripted import Recording
from .shown import shown_bar

PROMPT = 8  # tokens: each asks for K experts of every layer, which is what a row costs before it is timed
TEXT = "Question: A baker sells 14 loaves in the morning and twice as many in the afternoon. How many loaves are sold?"
ACCELERATE = "accelerate's offload"


@dataclass
class Options:
    """What to run.

    Attributes:
        models: published names, whose weights are random; or folders and hub ids, whose weights are real.
        layers: keep the first so many layers of the published ones; every figure is then of those alone.
        slots: of each layer; None for K, 2K, a quarter and half of the experts.
        routing: "recorded" (what ships, where it fits), "random" (the routers' own), or the path of a trace.
        minutes: for everything. Rows for which no time is left say so.
        quick: one model, two sizes, within a minute.
        device, tiny: "cpu" needs tiny: a rehearsal with small shapes on a simulated clock.
        static: each row once more with a static KV cache and, on a card, CUDA graphs (`offload(static=)`).
        tokens: most of a row.   seed: of weights, fallbacks and sampled tokens.   gamma: of real models.
    """

    models: tuple[str, ...] = tuple(PUBLISHED)
    layers: int | None = None
    slots: tuple[int, ...] | None = None
    routing: str = "recorded"
    minutes: float = 8.0
    quick: bool = False
    device: str = "cuda"
    tiny: bool = False
    tokens: int = 64
    seed: int = 0
    gamma: float = 0.7
    static: bool = False

    def __post_init__(self):
        number("minutes", self.minutes, low=0)
        whole("tokens", self.tokens)
        if self.quick:
            self.models, self.minutes = tuple(self.models[:1]), min(self.minutes, 1.0)


def bench(options: Options | None = None, *, progress: bool = True, keep: Callable[[dict], None] = lambda _: None):
    """Measures every row. Returns conditions, link (by model) and rows, as JSON takes them.

    A row that failed holds `why`, one sentence; the others go on. `keep` is called with what there is after each row;
    where it fails, a warning says so once, and it is asked no more.

    Raises:
        MobileError: there is no CUDA device, and no rehearsal was asked for.
    """
    options = options or Options()
    device = _device(options)
    about = conditions(asdict(options), device)
    about["prompt_tokens"] = PROMPT
    result: dict = {"conditions": about, "link": {}, "rows": []}
    keep = _until_it_fails(keep)
    begun = time.perf_counter()
    end = begun + 60 * options.minutes
    with current(device), shown_bar(progress) as bar:
        for at, name in enumerate(options.models):
            share = time.perf_counter() + (end - time.perf_counter()) / (len(options.models) - at)
            try:
                _model(name, options, device, share, bar, result, keep)
            except Exception as problem:  # of a model or a library that nobody has tried: the others go on
                result["rows"].append({"model": name, "why": _sentence(problem)})
            keep(result)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    about["seconds"] = round(time.perf_counter() - begun, 1)
    return result


def _until_it_fails(keep: Callable[[dict], None]) -> Callable[[dict], None]:
    """`keep` until it fails: what is measured matters more."""
    failed = []

    def kept(result: dict) -> None:
        try:
            if not failed:
                keep(result)
        except Exception as problem:
            failed.append(problem)
            warnings.warn(f"rows are no longer kept while others are measured: {_sentence(problem)}", stacklevel=2)

    return kept


def _model(name: str, options: Options, device: torch.device, end: float, bar, result: dict, keep) -> None:
    """Adds the rows of one model."""
    bar.say(f"{name}: weights")
    random = name in PUBLISHED
    tokenizer, gamma = None, None
    if random:
        layers = options.layers
        if layers is None and options.quick:  # a minute's look is worth having on a machine of little memory too
            layers = layers_that_fit(name, tiny=options.tiny)
        model = random_published(name, device=device, layers=layers, tiny=options.tiny, seed=options.seed)
    else:
        (model, tokenizer), gamma = load(name, device=str(device), progress=False), options.gamma
    layers = find_layers(model)
    experts, top_k = layers[0].num_experts, layers[0].top_k
    shared = {
        "model": name,
        "weights": "random" if random else "real",
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    shared["layers"] = layers_said(name, model) if random else f"all {len(layers)} MoE layers"
    setting = _setting(name, model, tokenizer, options, device, len(layers), experts, top_k)
    shared["routing"] = setting.recording.name if setting.recording else "the router's own"
    slots = sorted({max(1, min(s, experts)) for s in options.slots or (top_k, 2 * top_k, experts // 4, experts // 2)})
    slots = fitting(model, slots) if device.type == "cuda" else slots
    slots = slots[-2:] if options.quick else slots
    slots.sort(key=lambda s: s != experts // 4)  # the paper's size first: the last rows may find no time left
    todo = jobs(top_k, slots, seed=options.seed, gamma=gamma, quick=options.quick)
    todo += [replace(job, static=True) for job in todo] if options.static else []
    rates = _rates(layers, device)
    yardstick = Yardstick(rates.get("pinned_gb_per_s") or rates["pageable_gb_per_s"])
    result["link"][name], rows = rates, result["rows"]
    bar.more(len(todo) + 1)
    rows_end = end_before(experts_gb(model), time.perf_counter(), end) if device.type == "cuda" else end
    if device.type == "cuda":  # kernels are loaded, and workspaces made, at their first use
        with contextlib.suppress(Exception):
            run(model, Job("warm-up", todo[-1].config), setting, yardstick, 0.5)
    for at, job in enumerate(todo):
        bar.step(f"{name}: {job.system}, {job.config.slots} slots")
        about = shared | {"system": job.system, "slots": job.config.slots, "of_experts": experts, "static": job.static}
        rows.append(about | _row(model, job, setting, yardstick, rows_end, len(todo) - at))
        if job.system in (ALONE, ALONE_LITTLE) and "pass_ms" in rows[-1]:
            yardstick.learn(rows[-1], big=job.system == ALONE)
        keep(result)
    bar.step(f"{name}: {ACCELERATE}")
    rows.append(shared | {"system": ACCELERATE} | _accelerate(model, setting, yardstick, device, end))


def fitting(model, slots: list[int]) -> list[int]:
    """The sizes that the card has room for; in the place of those that it has not, the largest that it has."""
    offloaded = Offloaded(model)
    room, each = 0.9 * offloaded.room(), offloaded.layout.nbytes * len(offloaded.layers)
    return sorted({min(s, max(1, int(room // each))) for s in slots})


def _row(model, job: Job, setting: Setting, yardstick: Yardstick, end: float, left: int) -> dict:
    """One row, with a fair part of the time that is left, or why there is none."""
    now = time.perf_counter()
    if now > end:
        return {"why": "no time was left for it: give more --minutes, or fewer models or slots."}
    try:
        found = run(model, job, setting, yardstick, 0.5 * (end - now) / left)
    except Exception as problem:
        found = {"why": _sentence(problem)}
    return {key: None if value != value else value for key, value in found.items()} | {
        "row_seconds": round(time.perf_counter() - now, 2)
    }


def _accelerate(model, setting: Setting, yardstick: Yardstick, device: torch.device, end: float) -> dict:
    if device.type != "cuda":
        return {"why": "it moves experts to a CUDA device, and there is none here."}
    gb = experts_gb(model)
    if time.perf_counter() + gb > end:  # as `end_before` has it
        return {"why": f"about {gb:.0f} s were not left for it: give more --minutes, or fewer models or slots."}
    try:
        with by_accelerate(model, device):
            took = tokens_by(
                model, setting.prompt, seconds=max(1.0, 0.5 * (end - time.perf_counter())), least=2, most=16
            )
    except Exception as problem:
        return {"why": _sentence(problem)}
    ms, bound = 1e3 * sum(took) / len(took), 1e3 * gb / yardstick.link_gb_per_s
    row = {"tokens": len(took), "tokens_per_s": 1e3 / ms, "ms_per_token": ms, "mb_per_token": 1e3 * gb}
    return row | {"link_bound_ms": bound, "over_link_bound": ms / bound, "time": "measured", "page_locked": False}


def _setting(name, model, tokenizer, options: Options, device, layers: int, experts: int, top_k: int) -> Setting:
    prompt = torch.randint(3, 500, (1, PROMPT), generator=torch.Generator().manual_seed(options.seed)).to(device)
    simulated = device.type != "cuda"
    words = {"hardware": DEFAULT_HARDWARE if simulated else None, "seed": options.seed, "most": options.tokens}
    if tokenizer is not None:
        return Setting(tokenizer(TEXT, return_tensors="pt").input_ids.to(device), sampled=False, **words)
    sizes = {"layers": layers, "experts": experts, "top_k": top_k, "device": device}
    recording = None
    if options.routing == "recorded":
        recording = Recording.shipped(**sizes)
    elif options.routing != "random":
        recording = Recording(Trace.load(options.routing), name=options.routing, **sizes)
    return Setting(prompt, recording=recording, geometry=Geometry.of(name) if simulated else None, **words)


def _rates(layers, device: torch.device) -> dict:
    if device.type != "cuda":
        gb = Hardware.preset(DEFAULT_HARDWARE).link_gb_per_s
        return {"pinned_gb_per_s": gb, "pageable_gb_per_s": None, "simulated": True}
    block = sum(p[0].nbytes for p in layers[0].experts.parameters(recurse=False))
    return link_rates(device, block)


def _device(options: Options) -> torch.device:
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MobileError(
            "bench measures a CUDA card, and this machine has none: --resident measures this CPU, and --device cpu "
            "--tiny rehearses the table with tiny shapes on a simulated clock."
        )
    if device.type != "cuda" and not options.tiny:
        raise MobileError("real sizes are measured on a CUDA card; on a CPU only a rehearsal makes sense: add --tiny.")
    if device.type == "cuda":
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def _sentence(problem: BaseException) -> str:
    said = " ".join(str(problem).split())
    return said if isinstance(problem, MobileError) else f"{type(problem).__name__}: {said[:300] or 'it said nothing'}"


__all__ = ["Options", "bench"]
