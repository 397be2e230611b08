"""The rows of a batch as tensors: what each row is, and what can be saved and moved with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from casa_core.errors import DataError


@dataclass(frozen=True, slots=True)
class Column:
    """One tensor of a :class:`SlotTensors`: a number a row, or ``width`` numbers."""

    dtype: torch.dtype
    fill: float
    width: int | None = None


class SlotTensors:
    """Named tensors with one entry a row.

    They are changed in place only, so that a step recorded on them (a CUDA graph) stays valid until
    :meth:`widen` or :meth:`add_rows` makes a larger one.

    Args:
        rows: B.
        columns: Name → what a fresh row holds.
        device: Where they live.
    """

    def __init__(self, rows: int, columns: Mapping[str, Column], device: str | torch.device) -> None:
        self.columns = dict(columns)
        self.device = torch.device(device)
        self._tensors: dict[str, torch.Tensor] = {}
        self._fresh(rows)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    @property
    def rows(self) -> int:
        """B."""
        return len(next(iter(self._tensors.values())))

    def reset(self, row: int, names: Sequence[str] | None = None) -> None:
        """Give one row (of these tensors) its fresh values again."""
        for name in self.columns if names is None else names:
            self._tensors[name][row] = self.columns[name].fill

    def widen(self, name: str, width: int) -> None:
        """Make room for ``width`` numbers a row, in front of those there; never less than before."""
        old = self._tensors[name]
        if width > old.shape[1]:
            column = self.columns[name]
            self.columns[name] = Column(column.dtype, column.fill, width)
            with torch.inference_mode(False):  # tensors made in inference mode cannot be changed outside it
                self._tensors[name] = pad(old, (width - old.shape[1], 0), value=column.fill)

    def add_rows(self, count: int) -> None:
        """Append fresh rows; the others stay as they are."""
        old, rows = self._tensors, self.rows
        self._fresh(rows + count)
        for name, tensor in old.items():
            self._tensors[name][:rows] = tensor

    def row_state(self, row: int) -> dict[str, torch.Tensor]:
        """Copies of one row's entries."""
        return {name: tensor[row].clone() for name, tensor in self._tensors.items()}

    def load_row(self, row: int, state: Mapping[str, torch.Tensor]) -> None:
        """Put :meth:`row_state` of any row, here or elsewhere, into one row; room is made where it is wider.

        Raises:
            DataError: If an entry is missing, or of another kind than the row's.
        """
        for name, tensor in self._tensors.items():
            value = state.get(name)
            if value is None or value.dtype != tensor.dtype or value.dim() != tensor.dim() - 1:
                kind = "missing" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
                raise DataError(
                    f"entry {name!r} of a row's state is {kind}",
                    f"a row holds {tensor.dtype} of shape {tuple(tensor.shape[1:])} there",
                    "load what row_state or state_dict of this version gave",
                )
        for name in self._tensors:
            value = state[name]
            if value.dim():
                self.widen(name, len(value))
                room = self._tensors[name].shape[1] - len(value)
                value = pad(value, (room, 0), value=self.columns[name].fill)
            self._tensors[name][row] = value.to(self.device)

    def _fresh(self, rows: int) -> None:
        with torch.inference_mode(False):
            self._tensors = {
                name: torch.full(
                    (rows,) if column.width is None else (rows, column.width),
                    column.fill,
                    dtype=column.dtype,
                    device=self.device,
                )
                for name, column in self.columns.items()
            }
