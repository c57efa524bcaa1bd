"""How much a text's loss depends on what each MoE layer puts out: AdapMoE's measure, for `policies.Sensitivity`.

Legend: L MoE layers · N tokens of a text · H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ..vocabulary import MobileError
from .adapters import find_layers


def sensitivities(model, texts: Iterable[torch.Tensor]) -> np.ndarray:
    """The Fisher information of each layer's output (AdapMoE, arXiv 2408.10284), measured on a few training texts: [L].

    To second order, a change d of a layer's output costs d' F d / 2 of loss, and AdapMoE puts the Fisher information in
    the place of the Hessian. Here F stands for its trace: the squared norm of the gradient of a text's loss by what the
    layer's experts add for one token, mean over tokens. The gradient is that of the text as it is (the empirical Fisher
    information), of the sum of its tokens' negative log-probabilities in nats [inference]. Only ratios between layers
    and to the threshold matter.

    Args:
        model: not offloaded; it is read in evaluation mode, and its parameters get no gradients.
        texts: token ids [1, N] each, N at least 2.

    Raises:
        MobileError: no text, one of fewer than two tokens, or a gradient that is not a number.
    """
    layers, training = find_layers(model), [(module, module.training) for module in model.modules()]
    total, tokens = np.zeros(len(layers)), 0
    model.eval()
    try:
        for ids in texts:
            if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
                raise MobileError(f"a text must be token ids [1, N] with N of at least 2, got {tuple(ids.shape)}.")
            total += [gradient.float().pow(2).sum().item() for gradient in _gradients(model, layers, ids)]
            tokens += ids.shape[1]
    finally:
        for module, was in training:
            module.training = was
    if not tokens or not np.isfinite(total).all():
        what = "a gradient is not a finite number" if tokens else "there is no text to measure on"
        raise MobileError(f"the layers' sensitivity cannot be told: {what}.")
    return total / tokens


@torch.enable_grad()
def _gradients(model, layers, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of the loss of one text by what is added to each layer's output, at nothing added: [N, H] each."""
    added: dict[int, torch.Tensor] = {}

    def add(at: int, out: torch.Tensor) -> torch.Tensor:
        added[at] = torch.zeros_like(out).requires_grad_()
        return out + added[at]

    hooks = [
        layer.experts.register_forward_hook(lambda _, given, out, at=at: add(at, out))
        for at, layer in enumerate(layers)
    ]
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    finally:
        for hook in hooks:
            hook.remove()
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device), reduction="sum")
    return list(torch.autograd.grad(loss, [added[at] for at in range(len(layers))]))


__all__ = ["sensitivities"]
