"""Frames come out whole, however the stream is cut."""

from __future__ import annotations

import pytest

from protocol.errors import FrameTooLong
from protocol.wire.framing import FrameReader, frame

PAYLOADS = [b"", b"a", b"bc" * 40, bytes(range(256))]
STREAM = b"".join(frame(payload) for payload in PAYLOADS)


def all_frames(reader: FrameReader) -> list[bytes]:
    found = []
    while (payload := reader.next_frame()) is not None:
        found.append(payload)
    return found


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_stream_cut_anywhere(cut: int) -> None:
    reader = FrameReader(1000)
    found = []
    for part in (STREAM[:cut], STREAM[cut:]):
        reader.feed(part)
        found += all_frames(reader)
    assert found == PAYLOADS
    assert len(reader) == 0


def test_a_stream_of_single_bytes() -> None:
    reader = FrameReader(1000)
    found = []
    for byte in STREAM:
        reader.feed(bytes([byte]))
        found += all_frames(reader)
    assert found == PAYLOADS


def test_a_long_frame_is_refused_when_its_length_is_read() -> None:
    reader = FrameReader(10)
    reader.feed(frame(b"0123456789") + (11).to_bytes(4, "big"))
    assert reader.next_frame() == b"0123456789"
    with pytest.raises(FrameTooLong, match="11 bytes where at most 10"):
        reader.next_frame()


def test_raw_bytes_after_a_frame() -> None:
    reader = FrameReader(10)
    reader.feed(frame(b"x") + b"raw bytes")
    assert reader.next_frame() == b"x"
    assert (reader.take(3), reader.take(100), reader.take(1)) == (b"raw", b" bytes", b"")
