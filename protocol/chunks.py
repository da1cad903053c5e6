"""A record's bytes as its holders see them: a front, which lists chunks by length and digest, and the chunks.

    4 bytes   magic "FMRK"          2 bytes   format version        1 byte    encoding of the chunks (0: as they are, 1: zstd)
    1 byte    0                     4 bytes   number of chunks      8 bytes   length of the content (the chunks, decoded)
    for each chunk: 4 bytes length, 32 bytes digest
    the chunks

1. The record's digest is that of its front. Who has a front that fits the summary can check each chunk alone, as it comes, whoever
   it comes from: so a transfer goes on where it broke, from another holder, or from several at once.
2. Chunks of equal digest are equal. What a holder has of an older version is not sent again. Sections of the content (see
   knowledge.py) are cut each from its own beginning, in chunks whose length follows from the section's: a section that keeps its
   length keeps its cuts, wherever in the record it is.
3. Each chunk is encoded for itself, and always to the same bytes, so that rule 2 holds for compressed records too.

Why BLAKE3 (one core of an AMD EPYC with AVX-512; `scripts/bench_bulk.py --only digests` measures it again): chunks of 64 KiB go through
SHA-256 at 1.7 GB/s, BLAKE2b at 0.7, BLAKE3 at 5.3, XXH3-128 at 41; a loopback connection moves 2 to 3 GB/s. XXH3 would find what
breaks by accident, but anyone can make two chunks of one XXH3 digest; a holder then gives other bytes than the owner sealed, and
nobody could tell (P7). BLAKE3 costs a third of the transfer and leaves that to nobody, and records that are sealed for their owner
can rely on it later.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import zstandard
from blake3 import blake3

from protocol.buffers import buffer_of
from protocol.errors import LocalProtocolError, RecordInvalid
from protocol.tensors import Part, fill
from protocol.wire.values import RecordSummary

MAGIC = b"FMRK"
FORMAT = 2
CHUNK_BYTES_MIN = 64 * 1024
"""The chunks of a small section. Smaller ones would spare more bytes where little changes, and cost 36 bytes each."""
CHUNKS_OF_SECTION_MAX = 512
"""A section that has more is cut into chunks of twice the length. Much longer ones have left the processor's cache when they are whole."""
SECTIONS_MAX = 16
CHUNKS_MAX = SECTIONS_MAX * CHUNKS_OF_SECTION_MAX
ZSTD_LEVEL = 1
"""Parameters are close to noise: higher levels take longer and find nothing more."""

Data = bytes | bytearray | memoryview
"""A record's bytes as they come: sealed here, or received straight into a buffer."""

_HEAD = struct.Struct(">4sHBBIQ")
_ENTRY = struct.Struct(">I32s")
HEAD_BYTES = _HEAD.size
FRONT_BYTES_MAX = HEAD_BYTES + CHUNKS_MAX * _ENTRY.size
_PLAIN, _ZSTD = 0, 1


def digest_of(data: Data) -> bytes:
    """32 bytes. Lets other threads run meanwhile."""
    return blake3(data).digest()


@dataclass(frozen=True, slots=True)
class Front:
    """What a record's front says. bounds: where each chunk begins in the record, and where the last one ends."""

    bounds: tuple[int, ...]
    digests: tuple[bytes, ...]
    compressed: bool
    content_bytes: int

    def chunk(self, data: Data, index: int) -> memoryview:
        """The bytes of one chunk in a record's buffer."""
        return memoryview(data)[self.bounds[index] : self.bounds[index + 1]]

    def is_right(self, data: Data, index: int) -> bool:
        """Whether this chunk's bytes are there."""
        return digest_of(self.chunk(data, index)) == self.digests[index]


def bind(sections: Sequence[Sequence[Part]], *, compress: bool = False) -> tuple[bytes, Data]:
    """The record of these sections, each in parts, as (its digest, its bytes). LocalProtocolError where there are too many. Each byte
    is copied once."""
    if len(sections) > SECTIONS_MAX:
        raise LocalProtocolError(f"a record has at most {SECTIONS_MAX} sections, not {len(sections)}")
    lengths = [length for parts in sections for length in _cut(sum(map(len, parts)))]
    content_bytes = sum(lengths)
    begin = HEAD_BYTES + len(lengths) * _ENTRY.size
    record = buffer_of(begin + content_bytes)
    fill(record[begin:], chain.from_iterable(sections))
    chunks: list[Data] = [record[start:end] for start, end in pairwise(accumulate(lengths, initial=begin))]
    if compress:
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        chunks = [compressor.compress(chunk) for chunk in chunks]
    head = _HEAD.pack(MAGIC, FORMAT, _ZSTD if compress else _PLAIN, 0, len(chunks), content_bytes)
    front = b"".join((head, *(_ENTRY.pack(len(chunk), digest_of(chunk)) for chunk in chunks)))
    if compress:
        return digest_of(front), b"".join((front, *chunks))
    record[:begin] = front
    return digest_of(front), record


def _cut(size: int) -> list[int]:
    """The lengths of a section's chunks."""
    length = CHUNK_BYTES_MIN
    while length * CHUNKS_OF_SECTION_MAX < size:
        length *= 2
    return [min(length, size - start) for start in range(0, size, length)]


def named(summary: RecordSummary) -> str:
    """How sentences about a record begin."""
    return f"the record of {summary.owner.short}, version {summary.version},"


def front_bytes(head: Data) -> int:
    """The length of the front that begins with these HEAD_BYTES bytes. RecordInvalid where none does."""
    if len(head) < HEAD_BYTES:
        raise RecordInvalid(f"{len(head)} bytes are too short for a record")
    magic, version, encoding, _, count, _ = _HEAD.unpack_from(head)
    if magic != MAGIC or version != FORMAT or encoding not in (_PLAIN, _ZSTD):
        raise RecordInvalid(f"it is not in format {FORMAT} of FMRec's records")
    if count > CHUNKS_MAX:
        raise RecordInvalid(f"it has {count} chunks where at most {CHUNKS_MAX} may be")
    return HEAD_BYTES + int(count) * _ENTRY.size


def read_front(summary: RecordSummary, front: Data) -> Front:
    """The front, and nothing after it, of the record that the summary names. RecordInvalid, in one sentence, where it is not."""
    if digest_of(front) != summary.digest:
        raise RecordInvalid(f"{named(summary)} does not have its digest: bytes were changed or lost")
    try:
        length = front_bytes(front)
    except RecordInvalid as error:
        raise RecordInvalid(f"{named(summary)} is none: {error}") from error
    if length != len(front):
        raise RecordInvalid(f"{named(summary)} has a front of {len(front)} bytes that says {length}")
    _, _, encoding, _, _, content_bytes = _HEAD.unpack_from(front)
    entries = list(_ENTRY.iter_unpack(memoryview(front)[HEAD_BYTES:]))
    bounds = tuple(accumulate((size for size, _ in entries), initial=length))
    if bounds[-1] != summary.record_bytes:
        raise RecordInvalid(f"{named(summary)} has {bounds[-1]} bytes, not the {summary.record_bytes} that were announced")
    if any(start == end for start, end in pairwise(bounds)):
        raise RecordInvalid(f"{named(summary)} has an empty chunk")
    if encoding == _PLAIN and content_bytes != bounds[-1] - length:
        raise RecordInvalid(f"{named(summary)} has {bounds[-1] - length} bytes of content where {content_bytes} were announced")
    return Front(bounds, tuple(digest for _, digest in entries), encoding == _ZSTD, content_bytes)


def front_of(summary: RecordSummary, data: Data) -> Front:
    """The front of a whole record. RecordInvalid where these bytes do not begin with the front that the summary names."""
    if len(data) != summary.record_bytes:
        raise RecordInvalid(f"{named(summary)} has {len(data)} bytes, not the {summary.record_bytes} that were announced")
    try:
        length = front_bytes(data)
    except RecordInvalid as error:
        raise RecordInvalid(f"{named(summary)} does not have its digest: {error}") from error
    return read_front(summary, memoryview(data)[:length])


def verify(summary: RecordSummary, data: Data) -> Front:
    """RecordInvalid, in one sentence, unless these are all the bytes that the summary names. Takes 0.2 ms a megabyte."""
    front = front_of(summary, data)
    if not all(front.is_right(data, index) for index in range(len(front.digests))):
        raise RecordInvalid(f"{named(summary)} does not have its digest: bytes were changed or lost")
    return front


def content_of(summary: RecordSummary, data: Data, content_bytes_max: int, *, checked: bool = False) -> memoryview:
    """The sections, one after the other, of a record; verified, unless the caller knows that each chunk has been. RecordInvalid as for
    verify(), or where they are longer than may be."""
    front = front_of(summary, data) if checked else verify(summary, data)
    if front.content_bytes > content_bytes_max:
        raise RecordInvalid(f"{named(summary)} has {front.content_bytes} bytes of content where at most {content_bytes_max} may be")
    if not front.compressed:
        content = memoryview(data)[front.bounds[0] :]
    else:
        content = _decompressed(summary, front, data)
    if len(content) != front.content_bytes:
        raise RecordInvalid(f"{named(summary)} has {len(content)} bytes of content where {front.content_bytes} were announced")
    return content


def _decompressed(summary: RecordSummary, front: Front, data: Data) -> memoryview:
    """No more room is made than the front announces, whatever a chunk says of itself."""
    content = bytearray()
    decompressor = zstandard.ZstdDecompressor()
    try:
        for index in range(len(front.digests)):
            chunk = front.chunk(data, index)
            left = front.content_bytes - len(content)
            if not 0 < zstandard.get_frame_parameters(chunk).content_size <= left:
                raise RecordInvalid(f"{named(summary)} has more content than was announced")
            content += decompressor.decompress(chunk)
    except zstandard.ZstdError as error:
        raise RecordInvalid(f"{named(summary)} cannot be decompressed: {error}") from error
    return memoryview(content)
