"""What the tests share: small models, plain references written without the library, fake policies, comparisons."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from transformers import LogitsProcessor, StoppingCriteria

from mobile_nb import MobileError
from mobile_nb.files import data_path
from mobile_nb.model.tiny import random_model
from mobile_nb.vocabulary import Wanted

EXPERTS, TOP_K = 8, 4  # of every random model
ARCHITECTURES = {
    "olmoe": ("olmoe", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-plain-weights": ("qwen3_moe", {"norm_topk_prob": False}),
    "deepseek_v2": ("deepseek_v2", {}),
    "mixtral": ("mixtral", {}),
    "gpt_oss": ("gpt_oss", {}),
    "granitemoe": ("granitemoe", {}),
}
TINY_OLMOE = data_path("tiny-olmoe", "model.safetensors")
every_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))
GREEDY = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def since(major: int, minor: int):
    """Skips a test, visibly, on an older transformers, where the library says in a sentence what cannot be."""
    here = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return pytest.mark.skipif(here < (major, minor), reason=f"needs transformers {major}.{minor}")


_SEEDS: dict[str, int] = {}


def make(name: str = "olmoe", **changes):
    """A fresh random model, of a seed whose text is not one word again and again, or the trained one in float32."""
    if name == "tiny-olmoe":
        from mobile_nb import load

        return load("tiny-olmoe", dtype="float32")[0]
    architecture, fields = ARCHITECTURES.get(name, (name, {}))
    key, seed = repr((name, changes)), 0
    while key not in _SEEDS:
        text = plain(random_model(architecture, seed=seed, **(fields | changes)), prompt(), 8)
        if len(set(text)) > 4 or seed == 20:
            _SEEDS[key] = seed
        seed += 1
    return random_model(architecture, seed=_SEEDS[key], **(fields | changes))


def prompt(length: int = 6, *, seed: int = 0, vocabulary: int = 100) -> torch.Tensor:
    """[1, length] ids, none of them special."""
    return torch.randint(3, vocabulary, (1, length), generator=torch.Generator().manual_seed(seed))


def prompt_for(name: str, length: int = 6, *, seed: int = 0) -> torch.Tensor:
    """A prompt that means something to the trained model, or random ids for a random one."""
    if name != "tiny-olmoe":
        return prompt(length, seed=seed)
    from mobile_nb import load, tasks

    (problem,) = tasks.load("word-problems", n=1, seed=seed)
    return load("tiny-olmoe")[1](problem.prompt, return_tensors="pt").input_ids


def plain(model, ids, n: int, **named) -> list[int]:
    """The tokens that transformers itself writes."""
    out = model.generate(ids, max_new_tokens=n, **(GREEDY | {"attention_mask": torch.ones_like(ids)} | named))
    return out[0, ids.shape[1] :].tolist()


def routers(model) -> list[torch.nn.Module]:
    """The modules that read `top_k` on every forward: those that have it and no experts."""
    found = [m for m in model.modules() if isinstance(getattr(m, "top_k", None), int) and not hasattr(m, "experts")]
    assert found, f"no router in {type(model).__name__}"
    return found


@contextlib.contextmanager
def top_k(model, k: int):
    """The model with its routers' own top_k set to k."""
    before = [(router, router.top_k) for router in routers(model)]
    try:
        for router, _ in before:
            router.top_k = k
        yield
    finally:
        for router, old in before:
            router.top_k = old


@torch.no_grad()
def big_prompt_then_little(model, ids, n: int, k: int) -> tuple[list[int], torch.Tensor]:
    """Greedy decoding as a bare loop over model(): the prompt with all experts, then k. Tokens, logits [n, V]."""
    out = model(ids, use_cache=True)
    tokens, logits = [], []
    with top_k(model, k):
        for _ in range(n):
            logits.append(out.logits[0, -1].float())
            tokens.append(int(logits[-1].argmax()))
            at = torch.tensor([[ids.shape[1] + len(tokens) - 1]])
            word = torch.tensor([[tokens[-1]]])
            out = model(word, past_key_values=out.past_key_values, position_ids=at, use_cache=True)
    return tokens, torch.stack(logits)


def middle_gamma(model, ids, n: int) -> float:
    """A threshold between the little model's confidences on this text, so that both models have their say."""
    from mobile_nb import offload, systems

    with offload(model, systems.mobile(gamma=0)) as engine:
        written = engine.generate(ids, max_new_tokens=n, **GREEDY)
    return statistics.median(step.confidence for step in written.steps[1:])


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference."""
    assert a.shape == b.shape
    return (a.float() - b.float()).abs().max().item()


# -- a model as it was ---------------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """Everything that leaving `offload` must give back."""

    modules: dict
    parameters: dict
    buffers: dict
    training: dict
    logits: torch.Tensor

    @staticmethod
    def of(model) -> Snapshot:
        tensors = {
            name: (p, p.detach().clone(), p.dtype, p.stride(), p.requires_grad, p.device)
            for name, p in model.named_parameters()
        }
        return Snapshot(
            modules=dict(model.named_modules()),
            parameters=tensors,
            buffers={name: b.clone() for name, b in model.named_buffers()},
            training={name: m.training for name, m in model.named_modules()},
            logits=_logits(model),
        )

    def check(self, model) -> None:
        """Fails where the model is not what it was, down to the identity of its parts."""
        now = dict(model.named_modules())
        assert list(now) == list(self.modules)
        assert all(now[name] is module for name, module in self.modules.items())
        assert {name: m.training for name, m in now.items()} == self.training
        assert [name for name, _ in model.named_parameters()] == list(self.parameters)
        for name, p in model.named_parameters():
            same, value, dtype, stride, grad, device = self.parameters[name]
            assert p is same, f"{name} is another Parameter"
            assert (p.dtype, p.stride(), p.requires_grad, p.device) == (dtype, stride, grad, device), name
            assert p.is_contiguous() and p.untyped_storage().nbytes() == p.nbytes, f"{name} lies in a larger storage"
            assert torch.equal(p, value), name
        assert all(torch.equal(b, self.buffers[name]) for name, b in model.named_buffers())
        assert torch.equal(_logits(model), self.logits)


@torch.no_grad()
def _logits(model) -> torch.Tensor:
    flags = {m: m.training for m in model.modules()}
    out = model.eval()(prompt(5)).logits.clone()
    for module, flag in flags.items():
        module.training = flag
    return out


# -- sentences -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def refused(*fragments: str, kinds=(ValueError, TypeError, MobileError)):
    """The block must raise one of our kinds, with one readable sentence that holds the fragments."""
    with pytest.raises(kinds) as caught:
        yield caught
    said = str(caught.value)
    assert "\n" not in said and said.endswith((".", ").")), f"not one sentence: {said!r}"
    assert 20 < len(said) < 500, said
    for fragment in fragments:
        assert fragment.lower() in said.lower(), f"{fragment!r} is not in {said!r}"


# -- fakes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefetcher:
    """Asks for what a function (layer, view) returns."""

    ask: object

    def wanted(self, layer, view):
        return self.ask(layer, view)


def everything(layer, view):
    return [Wanted(at, tuple(range(EXPERTS))) for at in range(view.layers)]


def behind(layer, view):
    """Layers that are computed already, and the one at hand."""
    return [Wanted(at, (7, 0, 3)) for at in range(layer + 1)]


def twice(layer, view):
    return [Wanted(at, (1, 1, 2, 2, 1)) for at in range(view.layers)] * 2


def guessing(seed: int):
    """Random layers and ids, some of them twice."""
    generator = torch.Generator().manual_seed(seed)

    def ask(layer, view):
        layers = torch.randint(0, view.layers, (3,), generator=generator).tolist()
        return [Wanted(at, tuple(torch.randint(0, EXPERTS, (5,), generator=generator).tolist())) for at in layers]

    return ask


@dataclass
class Recorder:
    """A streamer that notes what it is given, and raises after `limit` tokens."""

    limit: int | None = None
    error: BaseException | None = None
    calls: list = field(default_factory=list)
    ended: int = 0

    def put(self, value):
        self.calls.append(value.tolist())
        if self.limit is not None and len(self.calls) > self.limit:
            raise self.error

    def end(self):
        self.ended += 1


class StopAfter(StoppingCriteria):
    """Stops, or raises, after `n` new tokens."""

    def __init__(self, n: int, error: BaseException | None = None):
        self.n, self.error, self.seen = n, error, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.seen += 1
        if self.seen >= self.n and self.error is not None:
            raise self.error
        return torch.full((input_ids.shape[0],), self.seen >= self.n, dtype=torch.bool)


class OnlyOdd(LogitsProcessor):
    """Allows odd ids only."""

    def __call__(self, input_ids, scores):
        scores[:, ::2] = float("-inf")
        return scores
