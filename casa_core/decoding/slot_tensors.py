"""Per-slot settings and state of a batch as tensors that can be reset, widened, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.errors import DataError


@dataclass(frozen=True, slots=True)
class Column:
    """One tensor of a :class:`SlotTensors`: one number per slot, or ``width`` numbers."""

    dtype: torch.dtype
    fill: float
    width: int | None = None


class SlotTensors:
    """Named tensors with one entry per slot.

    They are changed in place only, so a step recorded on them (a CUDA graph) stays valid until :meth:`widen`
    or :meth:`add_slots` replaces one by a larger one.

    Args:
        columns: Name → what a fresh slot holds.
    """

    def __init__(self, slots: int, columns: Mapping[str, Column], device: str | torch.device) -> None:
        self.columns = dict(columns)
        self.device = torch.device(device)
        self._tensors: dict[str, torch.Tensor] = {}
        self._fresh(slots)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    @property
    def slots(self) -> int:
        """B."""
        return len(next(iter(self._tensors.values())))

    def reset(self, slot: int, names: Sequence[str] | None = None) -> None:
        """Set one slot's entries (all, or those named) back to their fill values."""
        for name in self.columns if names is None else names:
            self._tensors[name][slot] = self.columns[name].fill

    def widen(self, name: str, width: int) -> None:
        """Grow a column to ``width`` numbers per slot, filled in front; a column never shrinks."""
        old = self._tensors[name]
        if width > old.shape[1]:
            column = self.columns[name]
            self.columns[name] = Column(column.dtype, column.fill, width)
            with torch.inference_mode(False):  # tensors made in inference mode cannot be changed outside it
                self._tensors[name] = pad(old, (width - old.shape[1], 0), value=column.fill)

    def add_slots(self, count: int) -> None:
        """Append ``count`` fresh slots; the others keep their values."""
        old, slots = self._tensors, self.slots
        self._fresh(slots + count)
        for name, tensor in old.items():
            self._tensors[name][:slots] = tensor

    def slot_state(self, slot: int) -> dict[str, torch.Tensor]:
        """Copies of one slot's entries."""
        return {name: tensor[slot].clone() for name, tensor in self._tensors.items()}

    def load_slot(self, slot: int, state: Mapping[str, torch.Tensor]) -> None:
        """Load the :meth:`slot_state` of any slot, of these or other tensors; columns grow where it is wider.

        Raises:
            DataError: If an entry is missing, or has another type or number of dimensions.
        """
        for name, tensor in self._tensors.items():
            value = state.get(name)
            if value is None or value.dtype != tensor.dtype or value.dim() != tensor.dim() - 1:
                kind = "missing" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
                raise DataError(
                    f"Entry {name!r} of a slot's state is {kind}.",
                    f"A slot holds {tensor.dtype} of shape {tuple(tensor.shape[1:])} there.",
                    "Load what `slot_state` or `state_dict` of this version returned.",
                )
        for name in self._tensors:
            value = state[name]
            if value.dim():
                self.widen(name, len(value))
                room = self._tensors[name].shape[1] - len(value)
                value = pad(value, (room, 0), value=self.columns[name].fill)
            self._tensors[name][slot] = value.to(self.device)

    def _fresh(self, slots: int) -> None:
        with torch.inference_mode(False):
            self._tensors = {
                name: torch.full(
                    (slots,) if column.width is None else (slots, column.width),
                    column.fill,
                    dtype=column.dtype,
                    device=self.device,
                )
                for name, column in self.columns.items()
            }
