"""Which chunks of one record come from which of its holders, and which holder is let go in the middle (SR3's star).

1. A holder is asked for a run of chunks that nobody was asked for. Where it is alone: for all of them. Else for its part of half of
   what is left, at least RUN_BYTES_MIN: who is fast comes back sooner and brings more, and the last runs are short.
2. It is asked for the next run when half of the last is there, so that its connection never runs dry.
3. A holder from which nothing has come for stall_max_s has stalled, and is let go.
4. When nothing is left to ask for and a holder has nothing to do, the slowest of the others is let go, if the idle one would bring its rest
   in less than half the time and that spares worth_s or more.
5. The chunks of a holder that is let go, or that fails, are asked for anew.

No chunk is ever asked of two at once: both would write into the same place, and one of them unchecked bytes over checked ones. The
caller ends the connection of a holder before leave().
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.assembly import Run, runs_of
from protocol.identifiers import Peer

RUN_BYTES_MIN = 1 << 20
"""Shorter runs share better among holders of different speed, and cost a message each."""


@dataclass(slots=True)
class Share:
    """One holder's part. asked: when it was last given a run; heard: when its last byte came."""

    began: float
    asked: float = 0.0
    heard: float = 0.0
    got_bytes: int = 0
    owed_bytes: int = 0
    run_bytes: int = 0
    owed: dict[int, None] = field(default_factory=dict)

    def rate(self, until: float) -> float:
        """Bytes a second from its beginning."""
        return self.got_bytes / max(until - self.began, 1e-6)


class Striping:
    """The work on one record. length: bytes of a chunk. sharing: how many holders may take part, counting those yet to come."""

    def __init__(
        self, missing: Iterable[int], length: Callable[[int], int], sharing: int, *, stall_max_s: float, worth_s: float
    ) -> None:
        self._unasked = dict.fromkeys(missing)
        self._unasked_bytes = sum(length(index) for index in self._unasked)
        self._length = length
        self._sharing = sharing
        self._stall_max_s = stall_max_s
        self._worth_s = worth_s
        self._shares: dict[Peer, Share] = {}

    def join(self, holder: Peer, now: float) -> Share:
        """The holder has the record, and can be asked. Its share is what the next three take."""
        share = self._shares[holder] = Share(now, asked=now, heard=now)
        return share

    def leave(self, holder: Peer) -> None:
        """Rule 5. Nothing for a holder that never joined."""
        share = self._shares.pop(holder, None)
        if share is None:
            return
        self._unasked = dict.fromkeys(sorted([*self._unasked, *share.owed]))
        self._unasked_bytes += share.owed_bytes

    def alone(self) -> None:
        """No other holder will come: rule 1 need not share."""
        self._sharing = 1

    def next_runs(self, share: Share, now: float) -> tuple[Run, ...]:
        """What to ask this holder for now; nothing where it has enough to do, or nothing is left."""
        if share.owed_bytes * 2 > share.run_bytes or not self._unasked:
            return ()
        sharing = max(self._sharing, len(self._shares))
        at_least = self._unasked_bytes if sharing == 1 else max(self._unasked_bytes // (2 * sharing), RUN_BYTES_MIN)
        taken: list[int] = []
        size = 0
        for index in self._unasked:
            if size >= at_least:
                break
            taken.append(index)
            size += self._length(index)
        for index in taken:
            del self._unasked[index]
        self._unasked_bytes -= size
        share.owed |= dict.fromkeys(taken)
        share.owed_bytes += size
        share.run_bytes = size
        share.asked = now
        return runs_of(taken)

    def heard(self, share: Share, size: int, now: float) -> None:
        """So many bytes have come."""
        share.got_bytes += size
        share.heard = now

    def arrived(self, share: Share, index: int) -> None:
        """The chunk is here."""
        del share.owed[index]
        share.owed_bytes -= self._length(index)

    def to_let_go(self, now: float) -> tuple[Peer, str] | None:
        """Rules 3 and 4: one holder to be let go now, and why."""
        for holder, share in self._shares.items():
            if share.owed and now - max(share.heard, share.asked) >= self._stall_max_s:
                return holder, f"nothing has come from it for {self._stall_max_s:g} s"
        idle = [share for share in self._shares.values() if not share.owed and share.got_bytes]
        busy = [(share.owed_bytes / max(share.rate(now), 1.0), holder, share) for holder, share in self._shares.items() if share.owed]
        if self._unasked or not idle or not busy:
            return None
        rest_s, holder, share = max(busy, key=lambda each: each[0])
        instead_s = share.owed_bytes / max(each.rate(each.heard) for each in idle)
        if now - share.asked < self._worth_s or rest_s < 2 * instead_s + self._worth_s:
            return None
        return holder, f"it is slow: {rest_s:.3g} s for what another brings in {instead_s:.3g} s"

    def next_look_s(self) -> float:
        """to_let_go() should be asked again after so long."""
        return self._worth_s if any(not share.owed for share in self._shares.values()) else self._stall_max_s / 4

    def check_invariants(self) -> None:
        """Every chunk is in one place."""
        owed = [index for share in self._shares.values() for index in share.owed]
        assert len(owed) == len(set(owed)), "a chunk is asked of two"
        assert not set(owed) & self._unasked.keys(), "a chunk is asked for and is not"
        assert self._unasked_bytes == sum(map(self._length, self._unasked)), "bytes are counted wrongly"
        for share in self._shares.values():
            assert share.owed_bytes == sum(map(self._length, share.owed)), "bytes are counted wrongly"
