"""The messages about terms: who roots a tree, and may it go on (overlay/terms.py)? A part of messages.py, in whose table they are."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identifiers import Peer, TreeId


@dataclass(frozen=True, slots=True)
class RootQuery:
    """Routed with the treeId as key: does the root live? Where it does not, the live node closest to the treeId answers in its place."""

    request: int
    tree: TreeId
    asker: Peer


@dataclass(frozen=True, slots=True)
class RootReply:
    """rooted: the sender is the root, and `term` its own. Else the ring has no root of this tree; `term` is the latest known here, or 0."""

    request: int
    rooted: bool
    term: int


@dataclass(frozen=True, slots=True)
class TermRequest:
    """A root to an elector: may my term go on, with this version as the newest that is committed?

    sounding: a standby asks what would be answered to a root of this term; nothing is promised.
    """

    request: int
    tree: TreeId
    term: int
    version: int
    sounding: bool = False


@dataclass(frozen=True, slots=True)
class TermReply:
    """promised: the latest term promised here. version: the newest that a root has asked about here before: it is committed, or nearly."""

    request: int
    granted: bool
    promised: int
    version: int
    reason: str = ""
