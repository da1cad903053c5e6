"""The messages of the bulk channel, on which a record moves (aio/bulk.py, fetching.py). A part of messages.py, in whose table they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.identifiers import NodeId, TreeId
from protocol.wire.values import RecordSummary


@dataclass(frozen=True, slots=True)
class BulkPush:
    """I have this record for you. Its front (protocol/chunks.py), so many bytes, follows this frame at once."""

    record: RecordSummary
    purpose: Literal["replica", "upload"]
    front_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BulkFetch:
    """Send me the newest that you have of at least `version`."""

    owner: NodeId
    tree: TreeId
    version: int


@dataclass(frozen=True, slots=True)
class BulkAccept:
    """To a fetch: this record. Its front, so many bytes, follows this frame at once."""

    record: RecordSummary
    front_bytes: int


@dataclass(frozen=True, slots=True)
class BulkWant:
    """Who is to receive the record lacks these of its chunks: (first, count) of each run. Their bytes follow, in this order.

    To a push once. To a BulkAccept as often as the fetcher likes, before or after the bytes that it asked for before.
    """

    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class BulkRefuse:
    """No, and why; nothing was stored."""

    reason: str


@dataclass(frozen=True, slots=True)
class BulkStored:
    """All bytes arrived, the digests are right, the record is held: on disk, synced, where the holder has one that works."""
