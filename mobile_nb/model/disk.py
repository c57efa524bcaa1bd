"""Experts that a load left in their files, and reading one of them into a block. Knows nothing about slots or links."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..memory.store import Layout
from ..vocabulary import MobileError
from .checkpoint import Checkpoint


class ExpertFiles:
    """The experts of one layer on disk; `load(experts="disk")` sets it as `on_disk` of the fused-experts module.

    Args:
        checkpoint: with the entries of the model; this opens files of its own when the first expert is read.
        layout: of a block.
        jobs: what makes each expert, by expert.
        perform: (job, checkpoint, place_of) does one of them; place_of(parameter name) is the tensor to fill.
    """

    def __init__(self, checkpoint: Checkpoint, layout: Layout, jobs: dict[int, list], perform: Callable):
        self.layout, self._jobs, self._perform = layout, jobs, perform
        self._files = Checkpoint(checkpoint.entries)

    def read(self, expert: int, block: torch.Tensor) -> None:
        """Fills a block [numel] with one expert.

        Raises:
            MobileError: the file is gone, shorter than it was, or unreadable.
        """
        views = self.layout.views(block[None])
        for job in self._jobs[expert]:
            self._perform(job, self._files, lambda name: views[name.rpartition(".")[2]])

    def close(self) -> None:
        """Closes the files; the next read opens them again."""
        self._files.close()

    def read_cold(self, yes: bool = True) -> None:
        """Tell the system to forget what was read, so that the next read is the disk's again: for measurements."""
        self._files.cold = yes


def leave_on_disk(layouts: dict, jobs: list, checkpoint: Checkpoint, perform: Callable, kind: str) -> list:
    """Gives every fused-experts module its `on_disk`, and returns the jobs that are not about experts.

    Raises:
        MobileError: a family whose experts are converted all together.
    """
    rest, by_module = [], {module: {} for module in layouts}
    for job in jobs:
        module = next((m for name in job.names if (m := name.rpartition(".")[0]) in layouts), None)
        if module is None:
            rest.append(job)
        elif job.expert is None:
            raise MobileError(f"the experts of this {kind} are converted all together, so they cannot stay on disk.")
        else:
            by_module[module].setdefault(job.expert, []).append(job)
    for module, (experts, _, layout) in layouts.items():
        experts.on_disk = ExpertFiles(checkpoint, layout, by_module[module], perform)
    return rest


__all__ = ["ExpertFiles", "leave_on_disk"]
