"""What PyBrush's core must know of torch to hash samples and to store states: tensors as plain bytes.

Importing this module registers it with `pybrush.content` and `pybrush.record.states`. Tensors come back on
the CPU, without gradient, as plain `torch.Tensor`: the adapter copies them into parameters, buffers and
optimizer state, whose device and class the user's own code has set. Guide: docs/record_format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pybrush.content import ArrayBytes, register_tensor
from pybrush.errors import ContentError, UnsupportedError
from pybrush.record.trees import TensorParts, memory_order, register_codec

# By name, because a file must not choose attributes of torch. Quantized types lack their scale here.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex32, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}

_NUMPY_DTYPES = frozenset({
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
})  # fmt: skip
"""Types of which NumPy takes the memory as it stands."""


class TorchCodec:
    """Stores tensors, sizes, element types and devices in states."""

    name = "torch"

    def is_tensor(self, value: Any) -> bool:
        """Say whether a value is a tensor of any class."""
        return isinstance(value, torch.Tensor)

    def flatten(self, value: torch.Tensor) -> TensorParts:
        """Take a tensor apart.

        Raises:
            UnsupportedError: for another class than Tensor and Parameter, and for tensors without
                plain bytes: sparse, quantized, nested, of a type of less than a byte, on "meta".
        """
        # A class of the user's own would come back as a plain tensor, without what it adds.
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or not _has_bytes(value):
            raise UnsupportedError(f"a tensor without plain bytes: {_describe(value)}")
        return TensorParts(
            dtype=_dtype_name(value.dtype),
            shape=tuple(value.shape),
            data=_flat_bytes(value),
            order=memory_order(value.shape, value.stride()),
            storage_key=_storage_key(value),
        )

    def restore(
        self, dtype: str, shape: tuple[int, ...], order: tuple[int, ...] | None, data: NDArray[np.uint8]
    ) -> torch.Tensor:
        """Return a new tensor on the CPU, laid out in memory as the stored one was.

        Raises:
            ValueError: where the four do not fit each other.
        """
        if dtype not in _DTYPES or prod(shape) * _DTYPES[dtype].itemsize != data.size:
            raise ValueError(f"{data.size} bytes are not a tensor of type {dtype!r} and shape {shape}")
        tensor = _empty(dtype, shape)
        tensor.reshape(-1).view(torch.uint8).copy_(torch.from_numpy(data.copy()))
        return laid_out(tensor, order)

    def describe(self, value: Any) -> tuple[str, str] | None:
        """Describe a torch.Size, torch.dtype or torch.device."""
        if type(value) is torch.Size:
            return "size", " ".join(map(str, value))
        if isinstance(value, torch.dtype) and _dtype_name(value) in _DTYPES:
            return "dtype", _dtype_name(value)
        if isinstance(value, torch.device):
            return "device", str(value)
        return None

    def build(self, kind: str, text: str) -> Any:
        """Return what was described.

        Raises:
            ValueError: for a text that `describe` does not write.
        """
        made: Any = None
        if kind == "size":
            made = torch.Size(map(int, text.split()))
        elif kind == "dtype":
            made = _DTYPES.get(text)
        elif kind == "device":
            made = _device(text)
        if made is None or self.describe(made) != (kind, text):
            raise ValueError(f"a torch {kind} cannot be {text!r}")
        return made


def laid_out(tensor: torch.Tensor, order: Sequence[int] | None) -> torch.Tensor:
    """Return a tensor whose axes lie in memory from the outermost to the innermost as `order` lists them.

    Args:
        tensor: in C order.
        order: what `memory_order` gave; None for C order.

    Raises:
        ValueError: where it does not name each axis once.
    """
    if order is None:
        return tensor
    if sorted(order) != list(range(tensor.ndim)):
        raise ValueError(f"{order} is no order of {tensor.ndim} axes")
    inverse = [order.index(axis) for axis in range(tensor.ndim)]
    return tensor.permute(*order).contiguous().permute(inverse)


def content_bytes(tensor: torch.Tensor) -> ArrayBytes:
    """Return a tensor as the content encoding sees it: equal to the NumPy array of the same values.

    Raises:
        ContentError: for a tensor without plain bytes.
    """
    if not _has_bytes(tensor):
        raise ContentError(
            f"a tensor in a sample must have plain bytes; got {_describe(tensor)}. Pass content_of=, a "
            "function of the sample that returns dense values, for example sample.to_dense()."
        )
    # Every row is read so, and NumPy takes a sixth of the time where it can share the memory.
    shared = tensor.device.type == "cpu" and tensor.dtype in _NUMPY_DTYPES and not (tensor.is_conj() or tensor.is_neg())
    data = tensor.detach().numpy() if shared else _flat_bytes(tensor)
    return ArrayBytes(_dtype_name(tensor.dtype), tuple(tensor.shape), data.tobytes(order="C"))


def register() -> None:
    """Make torch's values known to the core; runs when this module is imported."""
    register_tensor(torch.Tensor, content_bytes)
    register_codec(TorchCodec())


def _has_bytes(tensor: torch.Tensor) -> bool:
    # Classes with a __torch_dispatch__ of their own wrap other tensors: their own storage is empty.
    plain = type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    dense = plain and tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    return dense and _dtype_name(tensor.dtype) in _DTYPES


def _flat_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """Return a copy of the elements in C order, shape (bytes,)."""
    # Not contiguous(): it keeps the odd stride of a single element, of which no bytes can be viewed.
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
    fresh.copy_(tensor.detach())
    flat: NDArray[np.uint8] = fresh.reshape(-1).view(torch.uint8).numpy()
    return flat


def _storage_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    if tensor.numel() == 0:
        return None
    # A lazily conjugated or negated view has its base's memory and other values.
    lazy = (tensor.is_conj(), tensor.is_neg())
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), lazy)


def _empty(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=_DTYPES[dtype])
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"no {dtype} tensor can have shape {shape}") from error


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"{text!r} is no device") from error


def _describe(tensor: torch.Tensor) -> str:
    return f"{type(tensor).__qualname__}, {tensor.dtype}, {tensor.layout}, on {tensor.device}"


register()
