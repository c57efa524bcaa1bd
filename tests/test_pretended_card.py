"""The pretended card insists on what a card insists on; or its rehearsals would prove nothing."""

import warnings

import pytest
import torch
from pretended_card import PretendedCard
from torch import nn


@pytest.fixture
def card(pretended_card):
    if pretended_card is not None:
        pytest.skip("one at a time")
    if torch.cuda.is_available():
        pytest.skip("here is a real one")
    with pytest.MonkeyPatch.context() as patch, PretendedCard().plugged_in(patch) as card:
        yield card


def test_a_tensor_lies_where_it_was_made_or_moved_to(card):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert (here.device.type, there.device, there[1:].is_cuda, (2 * there).is_cuda) == (
        "cpu",
        torch.device("cuda", 0),
        True,
        True,
    )
    assert not there.cpu().is_cuda and here.to(there).is_cuda and torch.zeros_like(there).is_cuda
    moved = here.cuda()
    moved += 1
    assert here.sum() == 3 and there.to("cpu").data_ptr() != there.data_ptr(), "moving copies"
    layer = nn.Linear(3, 3).to("cuda")
    assert layer.weight.is_cuda and layer(there).is_cuda and not layer.cpu().weight.is_cuda


def test_what_is_computed_together_lies_together(card):
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0)).is_cuda and there[torch.tensor([0])].is_cuda


def test_waits_of_the_host_are_told(card):
    there, pinned = torch.ones(3, device="cuda"), torch.ones(3)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        there.copy_(pinned, non_blocking=True)
        there.add_(1).sum()
        for waits in (there.tolist, there.sum().item, there.cpu, there.nonzero, lambda: there.copy_(pinned)):
            with pytest.raises(UserWarning, match="synchronizing"):
                waits()


def test_copies_on_another_stream_are_late(card):
    there, mine, done = torch.zeros(2, device="cuda"), torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(mine):
        there.copy_(torch.ones(2), non_blocking=True)
        done.record()
    assert there.sum() == 0
    torch.cuda.current_stream().wait_event(done)
    assert there.sum() == 2 and done.query()


def test_a_graph_notes_and_does_not_do(card):
    given, out = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        out.add_(3 * given)
        graph.capture_end()
    assert out.tolist() == [0, 0]
    graph.replay()
    given.fill_(2)
    graph.replay()
    assert out.tolist() == [9, 9]
    with torch.cuda.stream(torch.cuda.Stream()):
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        with pytest.raises(RuntimeError, match="capturing"):
            out.sum().item()
        with pytest.raises(RuntimeError, match="previous error"):
            graph.capture_end()


def test_memory_is_counted(card):
    before = torch.cuda.memory_allocated()
    there = torch.zeros(1000, device="cuda")
    view = there[10:]
    assert torch.cuda.memory_allocated() == before + 4000
    del there
    assert torch.cuda.memory_allocated() == before + 4000
    del view
    assert torch.cuda.memory_allocated() == before
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(1 << 60, device="cuda")
