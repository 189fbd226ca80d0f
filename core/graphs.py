"""Functions of batches, called with few sizes of batch: on CUDA each is captured once as a graph, and then replayed.

A replay launches all kernels of a step at once, which is what bounds small batches. A batch is filled up to the next
power of two by repeating its last row, which changes no other row. Elsewhere the functions are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_GRAPHS = 96  # shapes beyond these are run without
WARM_UPS = 2  # runs before a capture, in which libraries choose their kernels and reserve memory

Run = Callable[..., Tensor]
Key = tuple[Run | int, ...]  # a function, the size of its batch, and the other sizes of its inputs


def bucket_of(n: int) -> int:
    """The size that a batch of `n` is run with: the next power of two."""
    if n < 1:
        raise ValueError(f"Expected a batch of at least 1 row. Found: {n}")
    return 1 << (n - 1).bit_length()


class Graphs:
    """Graphs that share their memory, and the tensors that they read. One call at a time."""

    def __init__(self, device: torch.device, captures: bool = True) -> None:
        """`captures`: False calls the functions on CUDA too."""
        self.device = device
        self.captures = captures and device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.inputs: dict[Key, tuple[Tensor, ...]] = {}
        self.captured: dict[Key, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @torch.inference_mode()
    def __call__(self, run: Run, *inputs: Tensor) -> Tensor:
        """`run(*inputs)` on the device, where the next call may overwrite it.

        Args:
            run: of tensors whose first dimension is the batch. What it writes elsewhere must lie at fixed places, and
                be the same if it is run again: before a capture it is.
            inputs: may lie in pinned memory of the host, which the device reads when its turn comes.
        """
        n = len(inputs[0])
        key: Key = (run, bucket_of(n), *(size for x in inputs for size in x.shape[1:]))
        if key not in self.inputs:
            self.inputs[key] = tuple(x.new_zeros((bucket_of(n), *x.shape[1:]), device=self.device) for x in inputs)
        static = self.inputs[key]
        for to, x in zip(static, inputs, strict=True):
            to[:n].copy_(x, non_blocking=True)
            to[n:] = to[n - 1]
        if key not in self.captured:
            if not self.captures or len(self.captured) == MOST_GRAPHS:
                return run(*static)[:n]
            self.captured[key] = self.capture(run, static)
        graph, output = self.captured[key]
        graph.replay()
        return output[:n]

    def capture(self, run: Run, static: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A graph that reads `static`, and the tensor that it writes."""
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run(*static)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=side, capture_error_mode="thread_local"):
            output = run(*static)
        return graph, output
