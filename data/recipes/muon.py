"""Muon (Jordan et al., 2024): momentum whose update is made orthogonal; knows nothing of the model it trains.

Matrices come as [rows, columns], the weights of E experts as [E, rows, columns]: each expert is its own matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Push the singular values of [..., rows, columns] to about 1 by Newton-Schulz iterations in bfloat16."""
    x = matrix.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).reshape(-1, *x.shape[-2:])
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x.mT if tall else x).reshape(matrix.shape).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then `orthogonal`, scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters: list, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                slow = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(slow, group["momentum"]))
                rows, columns = parameter.shape[-2:]
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
