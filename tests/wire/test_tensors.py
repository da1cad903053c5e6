"""Sections of tensors: the bytes of the library that the field keeps, both ways, and whatever a peer may send instead (P7)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from protocol.tensors import HEADER_BYTES_MAX, Array, fill, laid_out, read

KINDS = ("?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "c8", "f8", "i8", "u8")


def every_kind() -> dict[str, Array]:
    draw = np.random.default_rng(1)
    found = {f"of {kind}": draw.integers(0, 2, (3, 5)).astype(kind) for kind in KINDS}
    found |= {f"again {kind}": draw.integers(0, 2, 7).astype(kind) for kind in reversed(KINDS)}
    shapes = {"scalar": np.array(2.5), "none": np.zeros((0, 4), "f4"), "turned": draw.random((4, 3)).T, "every other": draw.random(9)[::2]}
    return found | shapes | {'"quoted" \u00e9\n': np.ones(1), "big-endian": np.arange(4, dtype=">i4")}


def section_of(tensors: dict[str, Array]) -> memoryview:
    parts = laid_out(tensors)
    section = memoryview(bytearray(sum(map(len, parts))))
    fill(section, parts)
    return section


def test_the_bytes_are_those_of_the_library() -> None:
    tensors = every_kind()
    dense = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    assert bytes(section_of(tensors)) == safetensors.numpy.save(dense)


def test_what_the_library_wrote_is_read_and_may_be_written_to() -> None:
    tensors = every_kind()
    found = read(memoryview(safetensors.numpy.save({name: np.array(tensor, order="C") for name, tensor in tensors.items()}, {"by": "it"})))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype.kind, found[name].dtype.itemsize) == (
            tensor.shape,
            tensor.dtype.kind,
            tensor.dtype.itemsize,
        )
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
        found[name].fill(0)


@pytest.mark.parametrize("tensor", [np.array([object()]), np.array(["a"]), np.ones(2, "c16"), np.zeros(2, [("a", "f4")])])
def test_what_has_no_form_is_refused(tensor: Array) -> None:
    with pytest.raises(ValueError, match="has no form in safetensors"):
        laid_out({"t": tensor})


def test_the_name_that_the_format_keeps_for_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="__metadata__"):
        laid_out({"__metadata__": np.ones(2)})


def test_a_header_that_would_keep_the_interpreter_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: fifty megabytes of zeros are twenty kilobytes when they are compressed, and two seconds in which nothing else runs."""
    many = b'{"a":[' + b"0," * (HEADER_BYTES_MAX // 2) + b"0]}"
    with pytest.raises(ValueError, match=f"at most {HEADER_BYTES_MAX} bytes, not {len(many)}"):
        read(lie(many))
    monkeypatch.setattr("protocol.tensors.HEADER_BYTES_MAX", 1000)
    read(memoryview(b"".join(map(bytes, laid_out({f"t{number}": np.ones(2) for number in range(10)})))))
    with pytest.raises(ValueError, match=r"the names and shapes of 30 tensors have \d+ bytes where at most 1000 may be"):
        laid_out({f"t{number}": np.ones(2) for number in range(30)})


def lie(entries: Any, content: bytes = bytes(8)) -> memoryview:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return memoryview(len(header).to_bytes(8, "little") + header + content)


def entry(**changed: Any) -> dict[str, Any]:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changed}


def test_the_entry_that_the_lies_below_begin_from_is_read() -> None:
    np.testing.assert_array_equal(read(lie(entry()))["t"], np.zeros(2, "f4"))


@pytest.mark.parametrize(
    "section",
    [
        lie(entry(dtype="F128")),
        lie(entry(dtype=["F32"])),
        lie(entry(dtype=None)),
        lie(entry(shape=[3])),
        lie(entry(shape=[-2])),
        lie(entry(shape=[2.0])),
        lie(entry(shape=[True, 2])),
        lie(entry(shape="22")),
        lie(entry(shape=[1] * 100 + [2])),
        lie(entry(shape=[0, 2**70], data_offsets=[0, 0])),
        lie(entry(shape=[2**62], data_offsets=[0, 2**64])),
        lie(entry(shape=[1], data_offsets=[4, 8])),
        lie(entry(shape=[1], data_offsets=[0, 4])),
        lie(entry(data_offsets=[8, 0])),
        lie(entry(data_offsets=[0])),
        lie({"w\ud800": entry()["t"]}),
        lie(entry(), bytes(7)),
        lie(entry() | {"u": entry()["t"]}),
        lie({"t": 1}),
        lie([]),
        lie(b"{"),
        lie(b"\xff"),
        lie(b"[" * 100_000),
        lie(b'{"t":' + b"9" * 5000 + b"}"),
        memoryview(b""),
        memoryview(b"\xff" * 8),
    ],
    ids=lambda section: ascii(bytes(section[8:60])),
)
def test_what_is_no_section_is_refused_in_a_sentence(section: memoryview) -> None:
    with pytest.raises(ValueError, match=r"tensor|dimension"):
        read(section)
