"""A card that is not there: tensors in host memory that say they lie on one, so that tests written for a card can be
rehearsed on any machine (`pytest -m gpu --pretend-card`).

It keeps to what a card insists on: a tensor stays where it was made until it is moved, moving copies, what is computed
together lies together, NumPy cannot read it, the host's waits are told where torch would tell of them, a graph notes
what it is asked to do instead of doing it, and copies on a stream of their own are late. Everything is computed on the
CPU, at once: of times, overlap, computations that are late and the rounding of real kernels it says nothing.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref

import torch
from pretended_streams import CARD, LATE, Cuda, flat
from torch import nn
from torch.overrides import TorchFunctionMode

HERE = torch.device("cpu")
PLUMBING = {"device", "_parse_to", "_has_compatible_shallow_copy_type"}  # these move nothing
MOVES = {"to", "cpu", "cuda", "copy_"}
ELSEWHERE = {"to", "copy_", "_foreach_copy_", "__getitem__", "__setitem__", "type_as"}  # may read from another device
WAITS = {"item", "tolist", "nonzero", "unique", "masked_select", "equal", "allclose", "bincount"}
WAITS |= {"__bool__", "__int__", "__float__", "__index__", "__contains__", "__repr__", "__format__"}
IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__", "__setitem__"}


def on_card(tensor) -> bool:
    return "_on_card" in tensor.__dict__


def is_device(value) -> bool:
    return isinstance(value, (torch.device, str)) and str(value).split(":")[0] in ("cuda", "cpu")


def histc(given, **named):
    """A card counts whole numbers too."""
    return torch.histc(given.float(), **named).to(given.dtype)


class PretendedCard(TorchFunctionMode):
    """Sees every call of a torch function, with its arguments.

    Attributes:
        cuda: what stands in for torch.cuda.
    """

    def __init__(self):
        super().__init__()
        self._tensors: dict[int, weakref.ref] = {}
        self.cuda = Cuda(self._allocated)

    @contextlib.contextmanager
    def plugged_in(self, patch):
        """torch has the card while the block runs. `patch`: a `pytest.MonkeyPatch`."""
        import torch._dynamo  # wants torch's own functions, once

        for name in dir(self.cuda):
            if name == "_sleep" or not name.startswith("_"):
                patch.setattr(torch.cuda, name, getattr(self.cuda, name))
        for name in ("_cuda_clearCublasWorkspaces", "_cuda_endAllocateToPool"):
            patch.setattr(torch._C, name, lambda *given: None, raising=False)
        real = torch.Generator
        patch.setattr(torch, "Generator", type("Generator", (), {"__new__": lambda cls, device=HERE: real()}))
        for kind in (nn.Parameter, nn.Buffer):
            patch.setattr(kind, "__new__", self._where_its_data_lie(kind.__new__))
        with self:
            yield self

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._property(func, name, args)
        if name in PLUMBING:
            return func(*args, **kwargs)
        if name == "is_pinned":
            return self._pinned(args[0])
        if name in ("numpy", "__array__") and on_card(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy.")
        goes = self._goes(name, args, kwargs)
        args = tuple(HERE if is_device(each) else each for each in args)
        kwargs = {key: HERE if is_device(each) else each for key, each in kwargs.items()}
        if name == "cuda":
            func, args, kwargs = torch.Tensor.to, (args[0], HERE), {}
        self._together(name, args, kwargs)
        self._wait(name, args, kwargs, goes)
        return self._run(histc if name == "histc" else func, name, args, kwargs, goes)

    # -- where tensors lie ---------------------------------------------------------------------------------------------

    def _goes(self, name, args, kwargs) -> torch.device:
        """Where a function puts what it returns: where it is told to, or where its arguments lie."""
        if name in ("cuda", "cpu"):
            return CARD if name == "cuda" else HERE
        for told in (*args, *kwargs.values()):
            if is_device(told):
                return CARD if str(told).startswith("cuda") else HERE
        given = list(flat((args, kwargs)))
        return CARD if any(map(on_card, given[1:] if name == "to" and len(given) > 1 else given)) else HERE

    def _place(self, tensor, device):
        if device == CARD:
            tensor._on_card, key = True, id(tensor)
            self._tensors[key] = weakref.ref(tensor, lambda _: self._tensors.pop(key, None))
        else:
            tensor.__dict__.pop("_on_card", None)

    def _property(self, func, kind, args):
        tensor, name = args[0], getattr(func.__self__, "__name__", "")
        if kind == "__set__":
            func(*args)
            if name == "data":
                self._place(tensor, CARD if on_card(args[1]) else HERE)
            return None
        if name == "device":
            return CARD if on_card(tensor) else func(*args)
        if name in ("is_cuda", "is_cpu"):
            return on_card(tensor) == (name == "is_cuda")
        out = func(*args)
        for each in flat(out):
            self._place(each, CARD if on_card(tensor) else HERE)
        return out

    def _where_its_data_lie(self, real):
        def new(cls, data=None, *given, **named):
            made = real(cls, data, *given, **named)
            self._place(made, CARD if data is not None and on_card(data) else HERE)
            return made

        return new

    def _together(self, name, args, kwargs):
        given = list(flat((args, kwargs)))
        there, here = any(map(on_card, given)), any(each.ndim and not on_card(each) for each in given)
        if there and here and (name not in ELSEWHERE or (name == "__getitem__" and not on_card(args[0]))):
            raise RuntimeError(f"Expected all tensors to be on the same device, and {name} has some on cuda:0 and cpu")

    def _pinned(self, tensor) -> bool:
        at = tensor.data_ptr()
        return any(begin <= at < begin + size for begin, size in self.cuda._locked.items())

    def _allocated(self) -> int:
        found = {}
        with torch._C.DisableTorchFunction():
            for tensor in [ref() for ref in list(self._tensors.values())]:
                if tensor is not None and on_card(tensor):
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
        return sum(found.values())

    # -- what runs, and when -------------------------------------------------------------------------------------------

    def _wait(self, name, args, kwargs, goes):
        """Tells of a wait; while a graph takes notes, refuses it."""
        given = list(flat((args, kwargs)))
        source, goes = (given[1:], CARD if on_card(given[0]) else HERE) if name == "copy_" else (given[:1], goes)
        crosses = name in MOVES and any(on_card(each) != (goes == CARD) for each in source)
        crosses |= name == "tensor" and goes == CARD
        chosen = name == "__getitem__" and any(each.dtype == torch.bool for each in flat(args[1:]))
        chosen |= name == "where" and len(args) == 1 and not kwargs
        waits = (chosen or name in WAITS) and any(map(on_card, given))
        waits |= crosses and not kwargs.get("non_blocking")
        graph = self.cuda._recording
        if graph is not None and (waits or (crosses and not all(map(self._pinned, source)))):
            graph.refuse(name)
        if waits and self.cuda._warns == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=4)

    def _run(self, func, name, args, kwargs, goes):
        given, graph = list(flat((args, kwargs))), self.cuda._recording
        changes = name in IN_PLACE or kwargs.get("out") is not None or (name[-1:] == "_" and name[-2:] != "__")
        if graph is None and (goes == CARD or any(map(on_card, given))):
            if name in LATE and self.cuda._now.late:
                self.cuda._now.do(lambda: func(*args, **kwargs))
                return args[0]
            self.cuda._now.synchronize()
        elif graph is not None and changes and any(map(on_card, given)):
            graph.notes.append((func, args, kwargs, ()))
            return kwargs.get("out", None if name == "__setitem__" else args[0])
        try:
            out = func(*args, **kwargs)
        except RuntimeError as problem:
            if goes == CARD and "allocate" in str(problem):
                raise torch.OutOfMemoryError("CUDA out of memory. " + str(problem)[:60]) from problem
            raise
        if changes:
            return out
        if name in MOVES and on_card(args[0]) != (goes == CARD) and out.data_ptr() == args[0].data_ptr():
            out = out.clone()
        made = [each for each in flat(out) if type(each) in (torch.Tensor, nn.Parameter)]
        for each in made:
            if on_card(each) != (goes == CARD):
                self._place(each, goes)
        if graph is not None and goes == CARD:
            old = {each.untyped_storage().data_ptr() for each in given}
            fresh = [None if each.untyped_storage().data_ptr() in old else each for each in made]
            graph.notes.append((func, args, kwargs, fresh))
        return out
