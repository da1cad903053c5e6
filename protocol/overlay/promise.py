"""What an elector has promised in one tree (terms.py). It must outlive the elector where that has a disk."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.identifiers import Peer, TreeId


@dataclass(frozen=True, slots=True)
class Promise:
    """The latest term that was promised, and to whom; the newest version that was agreed to, with the term of its writer. settled: a root
    has gone on from a version that was agreed to here, so that it was committed: what was promised before this life began is settled."""

    term: int = 0
    version: int = 0
    written: int = 0
    root: Peer | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class TreePromise:
    """A promise, and the tree that it is of."""

    tree: TreeId
    promise: Promise
