"""MoE-Beyond (arXiv 2508.17137): a small Transformer that names the experts of the next layer.

It reads what routers were given, in the order of computation: a row is one layer of one token. The published version is
handed the router's own input of the very layer that it predicts, and attends to rows yet to come; a linear gate turns
that input into the answer, and nobody has it in time. The honest version is handed the row before, and looks back only.

Legend: N rows · L MoE layers · E experts · H hidden · D width · F feed-forward · B blocks of the encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...files import data_path, written_whole
from ...vocabulary import MobileError, whole
from ..knowledge import Knowledge
from ..view import View


@dataclass(frozen=True, eq=False, repr=False)
class Network(Knowledge):
    """A trained predictor: an encoder as PyTorch's (norms after, ReLU, no positions), and a head with GELU.

    Attributes:
        layer: [L, D] an embedding of each MoE layer.   enter, enter_bias: [D, H + D], [D].
        qkv, qkv_bias, out, out_bias: [B, 3D, D], [B, 3D], [B, D, D], [B, D] attention.
        up, up_bias, down, down_bias: [B, F, D], [B, F], [B, D, F], [B, D].
        norm: [B, 2, 2, D] scale and shift, after attention and after the feed-forward.
        head, head_bias, tell, tell_bias: [D, D], [D], [E, D], [E].
        heads: of the attention.   honest: rows are told of the row before, and look back only.
    """

    layer: np.ndarray
    enter: np.ndarray
    enter_bias: np.ndarray
    qkv: np.ndarray
    qkv_bias: np.ndarray
    out: np.ndarray
    out_bias: np.ndarray
    up: np.ndarray
    up_bias: np.ndarray
    down: np.ndarray
    down_bias: np.ndarray
    norm: np.ndarray
    head: np.ndarray
    head_bias: np.ndarray
    tell: np.ndarray
    tell_bias: np.ndarray
    heads: np.ndarray
    honest: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """L, E and H of the model that it is for."""
        return len(self.layer), len(self.tell), self.enter.shape[1] - self.layer.shape[1]

    def logits(self, states: np.ndarray, layers: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """What it says of each row: [N, E], above 0 for "more likely than not".

        Args:
            states: [N, H] router inputs, in order: of the row before where it is honest, else of the row itself.
            layers: [N] the MoE layer whose experts the row asks about.   rows: which rows to answer.
        """
        x = np.concatenate([states, self.layer[layers]], axis=1) @ self.enter.T + self.enter_bias  # [N, D]
        after = np.triu(np.full((len(x), len(x)), -np.inf, dtype=x.dtype), 1) if self.honest else 0.0
        heads, size = int(self.heads), x.shape[1] // int(self.heads)
        for b in range(len(self.qkv)):
            packed = (x @ self.qkv[b].T + self.qkv_bias[b]).reshape(len(x), 3, heads, size)
            q, k, v = packed.transpose(1, 2, 0, 3)  # [heads, N, size] each
            score = q @ k.swapaxes(1, 2) / math.sqrt(size) + after
            weight = np.exp(score - score.max(axis=2, keepdims=True))
            seen = (weight / weight.sum(axis=2, keepdims=True)) @ v
            seen = seen.swapaxes(0, 1).reshape(x.shape) @ self.out[b].T + self.out_bias[b]
            x = _normed(x + seen, *self.norm[b, 0])
            inner = np.maximum(x @ self.up[b].T + self.up_bias[b], 0)
            x = _normed(x + inner @ self.down[b].T + self.down_bias[b], *self.norm[b, 1])
        inner = x[rows] @ self.head.T + self.head_bias
        gelu = inner * (0.5 + 0.5 * np.vectorize(math.erf, otypes=[x.dtype])(inner / math.sqrt(2)))
        return gelu @ self.tell.T + self.tell_bias

    def save(self, path: str | Path) -> None:
        """Writes it as safetensors, in half precision."""
        from safetensors.numpy import save

        found = {field.name: getattr(self, field.name) for field in fields(self)}
        halves = {name: part.astype(np.float16 if part.ndim else np.int32) for name, part in found.items()}
        with written_whole(path) as temporary:
            temporary.write_bytes(save(halves))

    @staticmethod
    def load(path: str | Path) -> Network:
        """Reads what `save` wrote.

        Raises:
            MobileError: no such file, or another one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(path)
            return Network(**{name: part.astype(np.float32 if part.ndim else np.int32) for name, part in found.items()})
        except (OSError, SafetensorError, TypeError) as problem:
            raise MobileError(
                f"{path} holds no predictor that can be read ({type(problem).__name__}); write one with Network.save."
            ) from problem

    @staticmethod
    def shipped(name: str, version: str = "honest") -> Network:
        """The one of an embedded model, "honest" or "published"; how it was trained says the card beside it."""
        path = data_path("beyond", f"{name}-{version}.safetensors")
        if not path.is_file():
            there = ", ".join(sorted(one.stem for one in path.parent.glob("*.safetensors"))) or "none"
            raise MobileError(f"there is no shipped predictor {name}-{version}; there are: {there}.")
        return Network.load(path)


@dataclass(frozen=True)
class Learned:
    """What a network says of the next layer, from the states of the layers so far. Live only: a trace holds no states.

    The network runs on the host, and a simulated clock does not charge for it.

    Attributes:
        network: such as `Network.shipped`, the honest version.
        context: tokens before the one at hand that it is shown. The paper reads whole prompts of up to 512 tokens at
            once; while a token is computed that is too long [inference].
    """

    network: Network
    context: int = 16

    def __post_init__(self):
        if not isinstance(self.network, Network):
            raise TypeError(f"Learned.network must be a Network, such as Network.shipped gives, got {self.network!r}.")
        whole("Learned.context", self.context)
        if not self.network.honest:
            raise MobileError(
                "the published version of MoE-Beyond predicts a layer from that layer's own router input, which is "
                "there only when the router has answered already: it can be scored, not run; take the honest version."
            )

    def expected(self, layer: int, view: View) -> np.ndarray:
        """[L, E] the probability of each expert of the next layer, 0 for all others."""
        found, at = np.zeros((view.layers, view.experts)), layer + 1
        if at < view.layers:
            states = view.states(self.context)
            if (view.layers, view.experts, states.shape[1]) != self.network.shape:
                raise MobileError(
                    "this predictor was trained for (layers, experts, hidden) = "
                    f"{self.network.shape}, and the model has {(view.layers, view.experts, states.shape[1])}."
                )
            found[at] = _probabilities(self.network, at, len(states), states.tobytes())
        return found


@lru_cache(maxsize=8)
def _probabilities(network: Network, at: int, rows: int, states: bytes) -> np.ndarray:
    """Of the experts of layer `at`, computed once for all who ask at the same point: a prefetcher and an eviction."""
    shown = np.frombuffer(states, dtype=np.float32).reshape(rows, -1)
    layers = np.arange(at - rows + 1, at + 1) % len(network.layer)
    return 1 / (1 + np.exp(-network.logits(shown, layers, slice(-1, None))[0].astype(float)))


def _normed(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * scale + shift


__all__ = ["Learned", "Network"]
