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
    """rooted: the sender is the root, and `term` its own. Else the ring has no root of this tree; `term` is the latest known here, or 0.
    version: the newest of the tree's record that the sender has put to its electors, or agreed to; 0 where it knows of none."""

    request: int
    rooted: bool
    term: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class TermRequest:
    """A root to an elector: may my term go on, and this version of the tree's record, which I have written, be committed?

    version 0: promise my term, and say which version is the newest; before anything is written in it.
    sounding: a standby asks what would be answered to a root of this term; nothing is promised.
    """

    request: int
    tree: TreeId
    term: int
    version: int
    sounding: bool = False


@dataclass(frozen=True, slots=True)
class TermReply:
    """promised: the latest term promised here. version, written: the newest that was agreed to here before this, and the term of its
    writer; it is committed, or may be. remembers: no promise of an earlier life is of account any more (overlay/terms.py, rule 8).
    """

    request: int
    granted: bool
    promised: int
    version: int
    written: int
    reason: str = ""
    remembers: bool = False
