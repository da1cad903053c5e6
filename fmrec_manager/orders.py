"""What a tree's root wants done. The daemon does it, and tells the root how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fmrec_manager.round import Slot
from protocol.identifiers import NodeId, Peer
from protocol.wire.messages import Phase


@dataclass(frozen=True, slots=True)
class Announce:
    """Multicast this order down the tree, with the committed theta where there is one. chosen: who trains, where that is not everyone."""

    phase: Phase
    round: int
    asked: NodeId | None = None
    chosen: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class LocateOwn:
    """Look for the tree's own newest record, on disk and on the leaf set. Ends in `Root.located`."""


@dataclass(frozen=True, slots=True)
class Recover:
    """Retrieve the newest record of this agent. Ends in `Root.retrieved`."""

    number: int
    agent: NodeId


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Fold the slots into theta, in the order of agentIds. Ends in `Root.aggregated`."""

    round: int
    slots: Mapping[NodeId, Slot]


@dataclass(frozen=True, slots=True)
class Commit:
    """Seal theta and the round state as this version and bring it to the leaf set. Ends in `Root.durable`."""

    version: int
    round: int


@dataclass(frozen=True, slots=True)
class Ask:
    """Put our term, and this version, to these electors; version 0: the term alone. Each answer ends in `Root.elector_answered`."""

    version: int
    electors: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class StepDown:
    """Another roots this tree, or did last, with this term: do nothing more for it but stand by."""

    reason: str
    term: int


@dataclass(frozen=True, slots=True)
class Say:
    """A fact for the log."""

    fact: str
    details: Mapping[str, object] = field(default_factory=dict)


Order = Announce | LocateOwn | Recover | Aggregate | Commit | Ask | StepDown | Say
