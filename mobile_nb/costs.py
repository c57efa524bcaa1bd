"""What each event costs in seconds and bytes, from what a machine can do and what a model weighs."""

from __future__ import annotations

from dataclasses import dataclass

from .hardware import Geometry, Hardware

NEVER = 1 << 30  # tokens; no pass reads so many


@dataclass(frozen=True)
class Costs:
    """Seconds of each event for a model of `layers` MoE layers that is timed as `geometry` on `hardware`.

    Where the geometry has more MoE layers than the model that routes (16 against 4, say), each layer stands for
    `stretch` of the real ones: its bytes and seconds are multiplied, so totals a token are the real model's.
    Compute = the larger of bytes/memory rate and operations/compute rate, plus a launch (design.md, section 7).

    `coded` holds the bytes a weight of each form that experts come in, None for as the geometry has them. An encoded
    expert is decoded before it is computed: read in its form, written and read again as it is. Decoding is batched over
    the experts of a wave; one launch of it is charged to each [inference].
    """

    hardware: Hardware
    geometry: Geometry
    layers: int
    coded: tuple[float | None, ...] = (None,)

    @property
    def stretch(self) -> float:
        return self.geometry.moe_layers / self.layers

    @property
    def expert_bytes(self) -> int:
        """Bytes that one fetch moves, of all the layers that it stands for; of the first form."""
        return self.bytes_of(0)

    @property
    def fetch_s(self) -> float:
        return self.fetch_of(0)

    def bytes_of(self, form: int) -> int:
        """Bytes that one fetch of a form moves."""
        size, each = self.geometry.expert_bytes, self.coded[form]
        return round((size if each is None else round(self.geometry.expert_params * each)) * self.stretch)

    def fetch_of(self, form: int) -> float:
        """Seconds of it."""
        return self.stretch * self.hardware.link_latency_s + self.bytes_of(form) / (self.hardware.link_gb_per_s * 1e9)

    def expert_s(self, tokens: int = 1, form: int = 0) -> float:
        """One expert on `tokens` tokens: three matrix products, so three launches."""
        seconds = self.stretch * self._compute_s(self.geometry.expert_params, tokens, launches=3)
        if self.coded[form] is None:
            return seconds
        decode = (self.bytes_of(form) + self.stretch * self.geometry.expert_bytes) / (
            self.hardware.memory_gb_per_s * 1e9
        )
        return seconds + decode + self.stretch * self.hardware.launch_s

    def up_s(self, tokens: int = 1) -> float:
        """The first piece of an expert that comes in pieces (`policies.Channels`): one product, and decoding where
        it is in fewer bits."""
        weights, size = self.geometry.expert_params / 3, self.geometry.bytes_per_weight
        seconds = self._compute_s(weights, tokens, launches=1)
        if 3 * self.coded[0] < size:
            read = self.geometry.expert_params * self.coded[0] + weights * size
            seconds += read / (self.hardware.memory_gb_per_s * 1e9) + self.hardware.launch_s
        return self.stretch * seconds

    def channels_s(self, share: float, tokens: int = 1) -> float:
        """The rest of it: two products over a share of its channels; of several tokens each is charged all of them."""
        return self.stretch * self._compute_s(self.geometry.expert_params * 2 / 3 * share, tokens, launches=2)

    def channels_fetch_s(self, amount):
        """Seconds of fetching so many channels as one copy; an array of amounts gives an array."""
        return self.stretch * self.hardware.link_latency_s + amount * self.bytes_of(1) / (
            self.hardware.link_gb_per_s * 1e9
        )

    def experts_s(self, amounts: list[int]) -> float:
        """Several experts one after the other, each on its amount of tokens."""
        return sum(self.expert_s(tokens) for tokens in sorted(amounts))

    def host_s(self, tokens: int = 1) -> float:
        """One expert on `tokens` tokens, computed on the host: the larger of bytes/host memory rate and operations/host
        rate, and a copy's latency each for the hidden states' way there and back. Their own bytes are left out."""
        weights = self.geometry.expert_params
        read = weights * self.geometry.bytes_per_weight / (self.hardware.host_gb_per_s * 1e9)
        multiply = 2 * weights * tokens / (self.hardware.host_tflops * 1e12)
        return self.stretch * (max(read, multiply) + 2 * self.hardware.link_latency_s)

    def host_ratio(self, tokens: int = 1) -> float:
        """Seconds of an expert on the host over those of fetching and computing it: below 1 the host is faster."""
        return self.host_s(tokens) / (self.fetch_s + self.expert_s(tokens))

    def crossover(self) -> int:
        """Tokens up to which the host computes an expert sooner than it is fetched and computed for them; 0: never."""
        fewest, most = 0, 1
        while most < NEVER and self.host_ratio(most) < 1:
            fewest, most = most, 2 * most
        while most - fewest > 1:
            middle = (fewest + most) // 2
            fewest, most = (middle, most) if self.host_ratio(middle) < 1 else (fewest, middle)
        return fewest

    def layer_s(self, tokens: int = 1) -> float:
        """All of one MoE layer but its routed experts: attention, norms, router, shared experts."""
        return self.stretch * self._compute_s(self.geometry.layer_params, tokens, launches=12)

    def head_s(self, tokens: int = 1) -> float:
        """Once a pass: dense layers, and the output matrix for the last token."""
        dense = sum(
            self._compute_s(self.geometry.dense_layer_params, tokens, 12) for _ in range(self.geometry.dense_layers)
        )
        return dense + self._compute_s(self.geometry.head_params, 1, launches=3)

    def _compute_s(self, weights: int, tokens: int, launches: int) -> float:
        read = weights * self.geometry.bytes_per_weight / (self.hardware.memory_gb_per_s * 1e9)
        multiply = 2 * weights * tokens / (self.hardware.tflops * 1e12)
        return max(read, multiply) + launches * self.hardware.launch_s


__all__ = ["Costs"]
