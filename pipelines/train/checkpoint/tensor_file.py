"""Safetensors files on a disk or on S3: written as a stream, read in parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from casa_core.errors import StoreError
from pipelines.storage.atomic import Written, create
from pipelines.storage.errors import attempt
from pipelines.storage.uri import Folder, filesystem_for

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensors(path: Folder, tensors: Mapping[str, torch.Tensor]) -> Written:
    """Write a safetensors file, which appears whole or not at all, without a copy in memory.

    Args:
        path: The file.
        tensors: Name → tensor in host memory.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with create(path) as output:
        output.write(len(text).to_bytes(8, "little"))
        output.write(text)
        for tensor in tensors.values():
            output.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    assert output.written is not None
    return output.written


class TensorFile:
    """A safetensors file, whose tensors are read flattened and in parts.

    Args:
        path: The file.

    Raises:
        StoreError: If the file is missing or cut off.
    """

    def __init__(self, path: Folder) -> None:
        self._path = path
        filesystem, inside = filesystem_for(path)
        try:
            self._file = attempt(str(path), lambda: filesystem.open_input_file(inside))
            length = int.from_bytes(self._read_at(8, 0), "little")
            self._header = json.loads(self._read_at(length, 8))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read.",
                f"{str(error).partition(chr(10))[0]}.",
                "Resume from an earlier step, or restore the file.",
            ) from error
        self._data = 8 + length

    def names(self) -> list[str]:
        """Names of the tensors."""
        return [name for name in self._header if name != "__metadata__"]

    def shape(self, name: str) -> list[int]:
        """A tensor's shape."""
        return self._header[name]["shape"]

    def read(self, name: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """``length`` elements of a flattened tensor from ``start`` on, 1-D; by default all to its end.

        Raises:
            StoreError: If the file is cut off.
        """
        entry = self._header[name]
        dtype = DTYPES[entry["dtype"]]
        first, last = entry["data_offsets"]
        begin = first + start * dtype.itemsize
        end = last if length is None else begin + length * dtype.itemsize
        data = self._read_at(end - begin, self._data + begin)
        if len(data) != end - begin:
            raise StoreError(
                f"{self._path} is cut off.",
                f"Its tensor {name} should have {end - begin} bytes there, and {len(data)} were read.",
                "Resume from an earlier step, or restore the file.",
            )
        return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)

    def _read_at(self, length: int, start: int) -> bytes:
        return attempt(str(self._path), lambda: self._file.read_at(length, start))
