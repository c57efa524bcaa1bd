"""An embedded model as a world: timed as the published model that it stands for, with all that systems may know of it.

What they learn, they learn from problems of the training split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .. import policies as p
from .. import systems
from ..hardware import Geometry, Hardware
from ..model.find import STANDS_FOR
from ..model.load import load
from ..runtime.offload import offload
from ..trace import Trace
from ..vocabulary import MobileError
from . import tasks

TASKS = ("word-problems", "small-functions")
CARD = "rtx4080-pcie4"
LEARNED_FROM = 8  # training problems of each task


@dataclass(frozen=True)
class World:
    """One embedded model and all that systems may know of it beforehand; each is made when it is first asked for."""

    name: str
    hardware: str = CARD

    @cached_property
    def loaded(self):
        return load(self.name, device="cpu")

    @property
    def geometry(self) -> str:
        return STANDS_FOR[self.name]

    @cached_property
    def experts(self) -> int:
        return Geometry.of(self.geometry).num_experts

    @cached_property
    def problems(self) -> dict[str, list]:
        return {task: tasks.load(task, split="train", n=LEARNED_FROM, seed=11) for task in TASKS}

    def trace_of(self, *names: str) -> Trace:
        """Full-K routing of the training problems of some tasks."""
        model, tokenizer = self.loaded
        with offload(model, systems.big(slots=self.experts), tokenizer=tokenizer) as engine:
            for name in names:
                for problem in self.problems[name]:
                    engine.generate(problem.prompt, max_new_tokens=problem.longest, do_sample=False)
            return engine.trace

    @cached_property
    def trace(self) -> Trace:
        return self.trace_of(*TASKS)

    def solved(self, most: int | None = None) -> Iterator:
        """[1, N] each: training problems with their solutions, up to so many of each task."""
        for each in self.problems.values():
            for problem in each[:most]:
                yield self.loaded[1](problem.prompt + problem.solution, return_tensors="pt").input_ids

    @cached_property
    def text(self):
        """[1, N] the training problems with their solutions, one after the other."""
        tokenizer = self.loaded[1]
        some = [problem for each in self.problems.values() for problem in each[:2]]
        return tokenizer(" ".join(q.prompt + q.solution for q in some), return_tensors="pt").input_ids[:, :300]

    @cached_property
    def buddies(self) -> p.Buddies:
        return p.Buddies.from_trace(self.trace)

    @cached_property
    def buddies_by_output(self) -> p.Buddies:
        from ..model.outputs import expert_outputs

        return p.Buddies.from_outputs(expert_outputs(self.loaded[0], self.text))

    @cached_property
    def sensitivity(self) -> list[float]:
        from ..model.sensitivity import sensitivities

        return sensitivities(self.loaded[0], self.solved(4)).tolist()

    @cached_property
    def channels(self) -> p.Channels:
        """FloE's, at the sparsity that its claim is for."""
        return self.sparse(0.9)

    def sparse(self, sparsity: float, **fields) -> p.Channels:
        """Thresholds for a share of channels that do not run, from the training problems with their solutions."""
        from ..model.channels import up_outputs

        outputs = up_outputs(self.loaded[0], self.solved(), fields.get("up"))
        return p.Channels.by_sparsity(outputs, sparsity, **fields)

    @cached_property
    def fewer(self) -> list[int]:
        """LExI's experts a layer, three quarters of K in all."""
        from ..model.outputs import deviations

        loss = deviations(self.loaded[0])
        return p.PerLayer.least_loss(loss, round(0.75 * loss.size)).runs

    @cached_property
    def host(self) -> p.OnHost:
        return p.OnHost.of(Hardware.preset(self.hardware), Geometry.of(self.geometry))

    @property
    def ratio(self) -> float:
        return self.host.ratio

    @cached_property
    def network(self) -> p.Network | None:
        try:
            return p.Network.shipped(self.name)
        except MobileError:
            return None


__all__ = ["CARD", "TASKS", "World"]
