"""Tensors as bytes, in the format of safetensors, and each copied once on the way in and once on the way out.

    8 bytes length of the header, least significant first; header: JSON, spaces at its end up to a multiple of 8; the tensors, little-endian
    header: {"name": {"dtype": "F32", "shape": [3, 4], "data_offsets": [begin, end]}, ...}, offsets from the header's end

The tensors lie one after the other, without gaps, by type and then by name: the bytes are those of the library `safetensors`, which
the tests hold this to. That library copies each tensor twice and more, and keeps the interpreter to itself meanwhile: 0.1 s for 100 MB, in
which an agent's event loop is late for its heartbeats. NumPy's copies let other threads go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Part = bytes | bytearray | memoryview | Array
"""Bytes in a row, an array of uint8 among them."""

_NAMES = ("BOOL", "U8", "I8", "I16", "U16", "F16", "I32", "U32", "F32", "C64", "F64", "I64", "U64")
"""In the order in which tensors lie, from the last to the first."""
_NUMPY = ("bool", "u1", "i1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<c8", "<f8", "<i8", "<u8")
_DTYPES = {name: np.dtype(numpy) for name, numpy in zip(_NAMES, _NUMPY, strict=True)}
_RANKS = {dtype: (-rank, name) for rank, (name, dtype) in enumerate(_DTYPES.items())}
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
HEADER_BYTES_MAX = 4 << 20
"""Names and shapes of some forty thousand tensors. Whoever reads a header keeps the interpreter until it is read: a sixth of a second."""


def laid_out(tensors: Mapping[str, Array]) -> list[Array]:
    """The section of these tensors, in parts: flat arrays of bytes, views where a tensor lies in memory as it is to be.

    ValueError for a type that has no form here (objects, say), or a name that a header can't have.
    """
    whole = {name: np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<")) for name, tensor in tensors.items()}
    for name, tensor in whole.items():
        if tensor.dtype not in _RANKS or name == _METADATA:
            raise ValueError(f"tensor {name!r} of {tensor.dtype} has no form in safetensors")
    order = sorted(whole, key=lambda name: (_RANKS[whole[name].dtype][0], name))
    entries: dict[str, object] = {}
    at = 0
    for name in order:
        tensor = whole[name]
        entries[name] = {
            "dtype": _RANKS[tensor.dtype][1],
            "shape": tensors[name].shape,
            "data_offsets": (at, at := at + tensor.nbytes),
        }
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_BYTES_MAX:
        raise ValueError(f"the names and shapes of {len(whole)} tensors have {len(header)} bytes where at most {HEADER_BYTES_MAX} may be")
    first = np.frombuffer(len(header).to_bytes(_LENGTH_BYTES, "little") + header, np.uint8)
    return [first, *(whole[name].reshape(-1).view(np.uint8) for name in order)]


def fill(buffer: memoryview, parts: Iterable[Part]) -> None:
    """Copies the parts one after the other into the buffer, which is as long as they. Other threads may run meanwhile."""
    whole = np.frombuffer(buffer, np.uint8)
    at = 0
    for part in parts:
        np.copyto(whole[at : at + len(part)], np.frombuffer(part, np.uint8))
        at += len(part)


def read(section: memoryview) -> dict[str, Array]:
    """The tensors of a section, copies, by name. ValueError, in one sentence, where it is none."""
    length = int.from_bytes(section[:_LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise ValueError(f"the header of a section of tensors has at most {HEADER_BYTES_MAX} bytes, not {length}")
    start = _LENGTH_BYTES + length
    if start > len(section):
        raise ValueError("a section of tensors ends before its header does")
    try:
        entries = json.loads(bytes(section[_LENGTH_BYTES:start]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a section of tensors has no header: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError("the header of a section of tensors names none")
    entries.pop(_METADATA, None)
    content = np.frombuffer(section[start:], np.uint8)
    found: dict[str, Array] = {}
    at = 0
    for begin, end, name, dtype, shape in sorted((_place(*item) for item in entries.items()), key=lambda place: place[:2]):
        if begin != at or end - begin != prod(shape) * dtype.itemsize or end > len(content):
            raise ValueError(f"tensor {name!r} is not where its header says")
        found[name] = np.empty(shape, dtype)
        fill(found[name].reshape(-1).view(np.uint8).data, [content[begin:end]])
        at = end
    if at != len(content):
        raise ValueError(f"{len(content) - at} bytes of a section belong to no tensor")
    return found


def _place(name: str, entry: Any) -> tuple[int, int, str, np.dtype[Any], list[int]]:
    """Begin, end, name, type and shape of a tensor. ValueError where its entry is none, or its name one that could not be written."""
    try:
        name.encode()
    except UnicodeEncodeError as error:  # an escape in JSON may stand for half a character
        raise ValueError(f"tensor {name!r} has a name that is no text") from error
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if dtype in _DTYPES:
            if all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
                return begin, end, name, _DTYPES[dtype], shape
    raise ValueError(f"tensor {name!r} has no entry that can be read")
