"""A vision tower recorded as CUDA graphs: live frames have one size, and come again and again.

A graph holds a power of two of images of one size; a batch of fewer fills its first places. Their layout is
planned once, when it is recorded.

Shape suffixes: P patches of all images, E values of a patch, N image tokens, C width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from casa_core.backbones.vision import VisionTower
from casa_core.decoding.graphed_step import Record, next_power, record_cuda

MOST_GRAPHS = 16
"""Each keeps memory for what it computes in between; the one that was not used for longest goes first."""

Grid = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Graph:
    """A recorded pass, its input and its output."""

    patches_PE: torch.Tensor
    image_NC: torch.Tensor
    replay: Callable[[], None]


class GraphedTower:
    """A tower by graphs; one is recorded when its size and number of images occur for the second time.

    Args:
        tower: On its device.
        record: By default :func:`casa_core.decoding.graphed_step.record_cuda`.
    """

    def __init__(self, tower: VisionTower, record: Record | None = None) -> None:
        self._tower, self._record = tower, record or record_cuda
        self._graphs: OrderedDict[tuple[Grid, int], _Graph | None] = OrderedDict()

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, patches_PE: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """(P, E) → (N, C), as the tower; images of several sizes go through it directly."""
        if len(set(grids)) > 1:
            return self._tower(patches_PE, grids)
        count = next_power(len(grids))
        key = grids[0], count
        if key not in self._graphs:
            self._keep(key, None)
            return self._tower(patches_PE, grids)
        graph = self._graphs[key] or self._recorded(patches_PE, grids[0], count)
        self._keep(key, graph)
        graph.patches_PE[: len(patches_PE)].copy_(patches_PE)
        graph.replay()
        # A copy: the next pass writes over it.
        return graph.image_NC[: len(graph.image_NC) // count * len(grids)].clone()

    def _recorded(self, patches_PE: torch.Tensor, grid: Grid, count: int) -> _Graph:
        held_PE = patches_PE.new_zeros(grid[0] * grid[1] * count, patches_PE.shape[1])
        grids = [grid] * count
        plan = self._tower.plan(grids, held_PE.device)
        image_NC, replay = self._record(lambda: self._tower(held_PE, grids, plan))
        return _Graph(held_PE, image_NC, replay)

    def _keep(self, key: tuple[Grid, int], graph: _Graph | None) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
