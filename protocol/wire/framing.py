"""Frames on a byte stream: 4 bytes of length, most significant first, then so many bytes of payload.

The reader takes bytes as they come and hands out whole frames. A length above the limit of the channel is refused when it is
read, before any room is made for it. Every byte is copied twice however it is cut: into the buffer, and out as a frame.
"""

from __future__ import annotations

from protocol.errors import FrameTooLong

LENGTH_BYTES = 4


def frame(payload: bytes) -> bytes:
    """The payload with its length before it."""
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameReader:
    """Whole frames out of a stream. `frame_bytes_max` may be changed between frames (a hello has a smaller limit)."""

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()  # begins at a frame's length, or at raw bytes after the last frame

    def __len__(self) -> int:
        """Bytes that were fed and not handed out yet."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """More of the stream."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The next whole payload, None where more bytes are needed. FrameTooLong, state unchanged, for one above the limit."""
        buffer = self._buffer
        if len(buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:LENGTH_BYTES], "big")
        if length > self.frame_bytes_max:
            raise FrameTooLong(f"a frame of {length} bytes where at most {self.frame_bytes_max} may be")
        end = LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[LENGTH_BYTES:end])
        # Dropping a prefix moves the bytearray's start, not its bytes: many small frames in one buffer stay linear.
        del buffer[:end]
        return payload

    def take(self, count_max: int) -> bytes:
        """Up to count_max bytes that are no frame: the first of a record that follows a BulkAccept."""
        taken = bytes(memoryview(self._buffer)[:count_max])
        del self._buffer[:count_max]
        return taken
