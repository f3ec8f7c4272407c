"""How the decode step is run: as it is, compiled, or as a CUDA graph. Same arithmetic, other launches.

Compiled code and graphs are made for fixed shapes. So the batch is brought up to one of a few sizes (the powers of two,
and all slots), and the reach of attention to a multiple of 256 tokens: for each pair that occurs, one is made. Slots
beyond the rows in use take part; nobody reads what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lit_thinkfast.models.decoding import decode_step

if TYPE_CHECKING:
    from lit_thinkfast.models.modeling import HybridForCausalLM
    from lit_thinkfast.models.slots import SlotCache

_REACH = 256  # tokens: what attention reads in vain is at most this much
_MOST_COMPILATIONS = 1024  # of one function in a process; torch gives up at 8

Replay = Callable[[], Tensor]
Capture = Callable[[Replay], Replay]
Aside = Callable[[], AbstractContextManager[None]]


class Decoder(Protocol):
    """``decoder(tokens, longest)``: as :func:`lit_thinkfast.models.decoding.decode_step`."""

    def __call__(self, tokens: Tensor, longest: int) -> Tensor: ...


def make_decoder(
    model: HybridForCausalLM, cache: SlotCache, *, backend: str = "auto", aside: Aside = nullcontext
) -> Decoder:
    """Return the decoder of a backend.

    Args:
        model: In evaluation mode.
        cache: Whose rows are brought forward.
        backend: ``"eager"``; ``"compile"``, by ``torch.compile``, which needs a compiler on a CPU; ``"cuda_graphs"``;
            ``"auto"``: CUDA graphs on CUDA, else eager; eager under autocast too, whose copies of weights a graph
            would read when they are gone.
        aside: Entered for what is done once for all steps of a shape.

    Raises:
        ValueError: A backend that is not one of these, or CUDA graphs of a model that is not on CUDA.
    """
    device = cache.lengths.device
    if backend == "auto":
        backend = "cuda_graphs" if device.type == "cuda" and not torch.is_autocast_enabled("cuda") else "eager"
    if backend == "eager":
        return lambda tokens, longest: decode_step(model, tokens, cache, longest=longest)
    if backend == "compile":
        compiled = torch.compile(decode_step, fullgraph=True, dynamic=False)
        return BucketedDecoder(model, cache, capture=None, step=compiled, aside=lambda: _compiling(aside))
    if backend != "cuda_graphs":
        raise ValueError(f"unknown backend {backend!r}; use auto, eager, compile or cuda_graphs")
    if device.type != "cuda":
        raise ValueError(f"backend 'cuda_graphs' needs a model on CUDA, this one is on {device}; use 'eager'")
    return BucketedDecoder(model, cache, capture=CudaGraphs(device), aside=aside)


@contextmanager
def _compiling(aside: Aside) -> Iterator[None]:
    """Let torch compile for as many shapes as there are."""
    limits = {"recompile_limit": _MOST_COMPILATIONS, "accumulated_recompile_limit": _MOST_COMPILATIONS}
    with aside(), torch._dynamo.config.patch(limits):
        yield


class CudaGraphs:
    """Captures functions on CUDA; all graphs share one pool of memory.

    Args:
        device: Of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, as that which watches over NCCL does in training.
        mode = "thread_local"
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool, capture_error_mode=mode):
            out = function()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


class BucketedDecoder:
    """A decoder of few shapes.

    The first step of a shape is run as it is; that is also what warms it up, since a graph must not be captured with
    libraries that have not been called. Its capture, which computes nothing, serves from the next step on. What is
    compiled is compiled by its first step.

    Args:
        model: The model.
        cache: Its rows.
        capture: From a function to one that repeats it on the same tensors; ``None``: nothing is captured.
        step: The step itself.
        aside: Entered for a capture; for the whole first step of a shape where nothing is captured.
    """

    def __init__(
        self,
        model: HybridForCausalLM,
        cache: SlotCache,
        *,
        capture: Capture | None,
        step: Callable[..., Tensor] = decode_step,
        aside: Aside = nullcontext,
    ) -> None:
        self._model, self._cache, self._capture, self._step, self._aside = model, cache, capture, step, aside
        self._tokens = torch.zeros(cache.slots, dtype=torch.int64, device=cache.lengths.device)
        self._reach = _REACH if model.config.attention_layers else cache.capacity  # a state has no length
        self._ready: dict[tuple[int, int], Replay] = {}

    def __call__(self, tokens: Tensor, longest: int) -> Tensor:
        count = len(tokens)
        rows = bucket(count, self._cache.slots)
        reach = min(self._cache.capacity, -(-longest // self._reach) * self._reach)
        self._tokens[:count] = tokens
        self._cache.lengths[count:rows] = 0  # else slots that nobody uses would grow beyond their capacity
        if (rows, reach) in self._ready:
            return self._ready[rows, reach]()[:count]

        def run() -> Tensor:
            return self._step(self._model, self._tokens[:rows], self._cache, longest=reach)

        if self._capture is None:
            with self._aside():
                logits = run()
            self._ready[rows, reach] = run
        else:
            logits = run()
            with self._aside():
                self._ready[rows, reach] = self._capture(run)
        return logits[:count]


def bucket(rows: int, slots: int) -> int:
    """Return the least power of two that holds ``rows``, at most ``slots``.

    >>> [bucket(rows, 48) for rows in (1, 5, 32, 33)]
    [1, 8, 32, 48]
    """
    return min(slots, 1 << (rows - 1).bit_length())
