"""A list of members, and its fingerprint: the XOR that two nodes compare to know whether they hold the same list.

The fingerprint runs along with each change, so that comparing costs the same for ten members as for ten thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.identifiers import RING, NodeId
from protocol.wire.values import MemberInfo


def _share(member: MemberInfo) -> int:
    """What one member adds: id times (2 incarnation + 1).

    The product, because with id ^ incarnation two members that both restart (1 -> 2) would cancel out.
    """
    return member.peer.id * (2 * member.peer.incarnation + 1) % RING


def check_of(members: Iterable[MemberInfo]) -> NodeId:
    """XOR over the shares of the members: lists that differ have different values, but for chance."""
    check = 0
    for member in members:
        check ^= _share(member)
    return NodeId(check)


class Roster(dict[NodeId, MemberInfo]):
    """Members by id; `check` is check_of() them at any moment. Changed by item only: update() and the like would miss it."""

    __slots__ = ("_check",)

    def __init__(self) -> None:
        super().__init__()
        self._check = 0

    @property
    def check(self) -> NodeId:
        return NodeId(self._check)

    def __setitem__(self, identifier: NodeId, member: MemberInfo) -> None:
        before = self.get(identifier)
        if before is not None:
            self._check ^= _share(before)
        self._check ^= _share(member)
        super().__setitem__(identifier, member)

    def __delitem__(self, identifier: NodeId) -> None:
        self._check ^= _share(self[identifier])
        super().__delitem__(identifier)

    def pop(self, identifier: NodeId, *default: Any) -> Any:
        """As of a dict."""
        if identifier not in self:
            return super().pop(identifier, *default)
        self._check ^= _share(self[identifier])
        return super().pop(identifier)
