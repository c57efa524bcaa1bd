"""The literature as a table: each published system is one choice for each of the six questions.

    system          count            keep        prefetch                  miss              evict            exact?
    big             K                -           -                         wait              LRU              yes
    on_demand       K                -           -                         wait              LRU              yes
    little          K/2              always      -                         wait              LRU              no
    mobile          K/2 or K         p(best) ≥ γ evicted router            wait              LRU              no
    speculative     K/2 drafts, K    verified    evicted routers           wait              LRU              yes
    moe_speq        K                verified    drafts' routers           low bits, drafts  LRU              yes
    next_gate       K                -           next gate                 wait              LRU              yes
    moe_infinity    K                -           request matrix            wait              request matrix   yes
    finemoe         K                -           iteration maps            wait              map × frequency  yes
    expertflow      K                -           successors, how far: ±1   wait              two-level LRU    yes
    moe_beyond      K                -           learned, the next layer   wait              LRU              yes
    adapmoe         by sensitivity   -           nearest gate that misses  wait              LRU              no
    lexi            K of each layer  -           -                         wait              LRU              no
    fiddler         K                -           -                         host, or wait     none: popular    yes
    early_routing   K                -           next gate                 run the foretold  LRU              no
    buddymoe        K                -           -                         buddy, gated      LRU              no
    smoe            K                -           next gate's top scores    near score, host  mean score       no
    premoe, emoe    K of a subset    -           -                         next ranked       none: a subset   no
    anybody, drop   K                -           -                         random, nobody    LRU              no
    quantized       K                -           -                         wait, fewer bits  LRU              no
    mc              by weight        -           -                         wait, their bits  LRU              no
    floe            K                -           next gate, its channels   wait, channels    LRU              no
    hobbit          K                -           next gate, two forms      low bits, nobody  LRU, LFU, LHU    no

Every function takes `slots=` or `budget_gb=` (and any other field of `MobileConfig`) beside its own parameters. What a
system learned beforehand comes first, made from a trace or measured on the model.

Adding one is a function in a file of this folder, and a line below.
"""

from __future__ import annotations

from .exact import expertflow, fiddler, finemoe, moe_beyond, moe_infinity, next_gate
from .lossy import (
    adapmoe,
    anybody,
    buddymoe,
    drop,
    early_routing,
    emoe,
    floe,
    hobbit,
    lexi,
    mc,
    premoe,
    quantized,
    smoe,
)
from .paper import big, little, mobile, moe_speq, on_demand, speculative

__all__ = [
    "adapmoe",
    "anybody",
    "big",
    "buddymoe",
    "drop",
    "early_routing",
    "emoe",
    "expertflow",
    "fiddler",
    "finemoe",
    "floe",
    "hobbit",
    "lexi",
    "little",
    "mc",
    "mobile",
    "moe_beyond",
    "moe_infinity",
    "moe_speq",
    "next_gate",
    "on_demand",
    "premoe",
    "quantized",
    "smoe",
    "speculative",
]
