"""Asks MoE blocks how they route: their experts are replaced by a recorder, and the block, or the whole model, is run.

Knows nothing about what the answers are for.

Legend: T tokens · K experts a token · H hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

TOKENS = 16  # of the text on which a whole model is asked


@dataclass
class Asked:
    """How a block called its experts.

    Attributes:
        hidden: what they were given [T, H].   index, weights: [T, K].
        router: the child module whose output held these very index and weights; None where the block itself routes.
        given, gave: what that child was called with, and what it returned.
    """

    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    router: nn.Module | None = None
    given: tuple = ()
    gave: tuple = ()


class _Recorder(nn.Module):
    """Stands in for `experts` and notes how it is called."""

    def __init__(self):
        super().__init__()
        self.call: tuple | None = None
        self.children_called: list[tuple] = []

    def forward(self, hidden, index, weights):
        self.call = (hidden, index, weights)
        return torch.zeros_like(hidden)

    def note(self, module, given, gave) -> None:
        if isinstance(gave, tuple):
            self.children_called.append((module, given, gave))

    def answer(self) -> Asked | None:
        if self.call is None:
            return None
        hidden, index, weights = self.call
        for module, given, gave in self.children_called:
            if any(part is index for part in gave) and any(part is weights for part in gave):
                return Asked(hidden, index, weights, module, given, gave)
        return Asked(hidden, index, weights)


@contextlib.contextmanager
def _recorders(blocks: list[nn.Module]) -> Iterator[list[_Recorder]]:
    """A recorder in place of each block's experts."""
    recorders, hooks = [_Recorder() for _ in blocks], []
    before = [block.experts for block in blocks]
    training = [(module, module.training) for block in blocks for module in block.modules()]
    try:
        for block, recorder in zip(blocks, recorders, strict=True):
            hooks += [child.register_forward_hook(recorder.note) for child in block.children()]
            block.eval()  # training adds noise to some routers
            block.experts = recorder
        with torch.no_grad():
            yield recorders
    finally:
        for block, experts in zip(blocks, before, strict=True):
            block.experts = experts
        for module, flag in training:
            module.training = flag
        for hook in hooks:
            hook.remove()


def ask_block(block: nn.Module, hidden: torch.Tensor) -> Asked:
    """Runs a block alone on hidden [T, H].

    Raises:
        Exception: whatever a block raises that needs more than hidden states.
    """
    with _recorders([block]) as (recorder,):
        block(hidden[None])
    answer = recorder.answer()
    if answer is None:
        raise LookupError("it did not call its experts")
    return answer


def ask_model(model, blocks: list[nn.Module]) -> list[Asked | None]:
    """Runs the whole model on a short text of random ids. None for a block that text does not reach.

    Raises:
        Exception: whatever a model raises that does not work on text alone.
    """
    vectors = model.get_input_embeddings().weight
    marks = {value for config in (model.config, model.config.get_text_config()) for value in _marks(config)}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(min(len(vectors), 1000), generator=generator).tolist()
    ids = [i for i in ids if i not in marks][:TOKENS]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with _recorders(blocks) as recorders:
            model(input_ids=torch.tensor([ids], device=vectors.device), use_cache=False)
    finally:
        for module, flag in training:
            module.training = flag
    return [recorder.answer() for recorder in recorders]


def _marks(config) -> list[int]:
    """Ids that stand for something else than text: where a picture comes, where a text ends."""
    return [v for k, v in vars(config).items() if isinstance(v, int) and k.endswith(("token_id", "token_index"))]


__all__ = ["Asked", "ask_block", "ask_model"]
