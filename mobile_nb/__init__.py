"""mobile_nb: run and understand Mixture-of-Experts models that do not fit the GPU.

    hidden ─▶ router ─▶ top-K experts, best first
                 ├─ how many run?             count      little K/2 · big K
                 ├─ on the device?            cache      hit · miss
                 │     └─ miss: what then?    miss       wait · host · low bits · buddy · drop
                 │            └─ fetch        link       host arena ─▶ device slot
                 ├─ who leaves?               evict      LRU · LFU · predicted reuse · popular
                 ├─ what to fetch early?      prefetch   evicted token's router · next gate · request matrix
                 └─ in what form?             codec      full · 8, 4 or 2 bits · two forms · channels
    logits ─▶ keep the little token?          keep       max probability ≥ gamma
                 └─ no: crop one KV position, prefetch, run big
    every event ─▶ trace ─▶ frames

    >>> import mobile_nb
    >>> model, tokenizer = mobile_nb.load("tiny-olmoe")
    >>> with mobile_nb.offload(model, mobile_nb.systems.mobile(slots=16), tokenizer=tokenizer) as engine:
    ...     print(engine.generate("Tom has 3 apples.", max_new_tokens=20).text)

Importing this module does no work: names load what they need when they are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load": ".model.load",
    "offload": ".runtime.offload",
    "plan": ".runtime.plan",
    "Engine": ".runtime.engine",
    "Generation": ".runtime.generation",
    "MobileConfig": ".runtime.config",
    "replay": ".runtime.replay",
    "sweep": ".runtime.sweep",
    "evaluate": ".analysis.evaluate",
    "Hardware": ".hardware",
    "Geometry": ".hardware",
    "Trace": ".trace",
    "GammaExplorer": ".view.explorer",
    "CacheTheatre": ".view.theatre",
    "MobileError": ".vocabulary",
    "Step": ".vocabulary",
}
_ROOMS = {
    "systems": ".systems",
    "policies": ".policies",
    "tasks": ".analysis.tasks",
    "metrics": ".analysis.metrics",
    "figures": ".view.figures",
}

__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str):
    if name in _ROOMS:
        value = import_module(_ROOMS[name], __name__)
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
    else:
        raise AttributeError(f"module 'mobile_nb' has no attribute {name!r}; it has {', '.join(__all__)}.")
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])
