"""What came of records whose transfer broke off, kept for a while, so that the next transfer goes on at the first chunk that is missing.

At most UNFINISHED_MAX, the oldest give way; each for unfinished_kept_s. They count as bytes that are being received.
"""

from __future__ import annotations

import asyncio

from protocol.assembly import Assembly
from protocol.identifiers import NodeId, TreeId

UNFINISHED_MAX = 16


class Unfinished:
    """Assemblies by the digest of their record."""

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._kept: dict[bytes, tuple[Assembly, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes_kept(self) -> int:
        """Room that they take, filled or not."""
        return sum(assembly.summary.record_bytes for assembly, _ in self._kept.values())

    def keep(self, assembly: Assembly) -> None:
        """Nothing is kept of what is complete, or has not begun."""
        if assembly.complete or not assembly.here():
            return
        self.take(assembly.summary.digest)
        if len(self._kept) >= UNFINISHED_MAX:
            self.give_way()
        digest = assembly.summary.digest
        self._kept[digest] = assembly, asyncio.get_running_loop().call_later(self._kept_s, self.take, digest)

    def take(self, digest: bytes) -> Assembly | None:
        """The one of this record, which is no longer kept; None where there is none."""
        assembly, timer = self._kept.pop(digest, (None, None))
        if timer is not None:
            timer.cancel()
        return assembly

    def of(self, owner: NodeId, tree: TreeId) -> list[Assembly]:
        """Those of any version of this owner's record, which stay."""
        return [assembly for assembly, _ in self._kept.values() if assembly.summary.key == (owner, tree)]

    def give_way(self) -> bool:
        """The oldest goes; False where there is none."""
        digest = next(iter(self._kept), None)
        return digest is not None and self.take(digest) is not None

    def clear(self) -> None:
        """All go."""
        while self.give_way():
            pass
