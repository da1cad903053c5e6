"""Learning, as hashes: what an agent has learnt is a chain over its iterations, theta a chain over rounds and contributions by agentId.

Two runs with the same members have the same theta if and only if every contribution of every round was the same, and each was counted once.
What a record holds is found under its digest, for whoever has the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from fmrec_manager.ballot import Groups
from fmrec_manager.round import Slot
from fmrec_manager.selection import Selection, choose
from protocol.identifiers import NodeId, Peer, TreeId
from protocol.wire.messages import Phase
from protocol.wire.values import MemberInfo, RecordSummary

DIGEST_BYTES = 32
HASH_BYTES = 16
EVERYONE = Selection()


def hashed(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=HASH_BYTES).digest()


def first_theta(seed: int) -> bytes:
    return hashed("theta", seed)


def begin(seed: int, agent: NodeId, number: int, theta: bytes) -> bytes:
    """The state before the first iteration of a round."""
    return hashed("job", seed, int(agent), number, theta)


def step(state: bytes) -> bytes:
    """One iteration."""
    return hashed("step", state)


def contribution(seed: int, agent: NodeId, number: int, theta: bytes, iterations: int) -> bytes:
    """What an undisturbed agent adds to a round."""
    state = begin(seed, agent, number, theta)
    for _ in range(iterations):
        state = step(state)
    return state


def aggregate(theta: bytes, parts: Mapping[NodeId, bytes]) -> bytes:
    """The next theta."""
    return hashed("aggregate", theta, [(int(agent), parts[agent]) for agent in sorted(parts)])


def weighed(value: bytes, factor: float) -> bytes:
    """What a contribution is at a discount; at none, itself."""
    return value if factor == 1.0 else hashed("weighed", value, factor)


def undisturbed(seed: int, agents: Iterable[NodeId], rounds: int, iterations: int, selection: Selection = EVERYONE) -> bytes:
    """theta after so many rounds in which nothing happens."""
    theta, members = first_theta(seed), tuple(sorted(agents))
    for number in range(rounds):
        chosen = choose(members, selection, number, {})
        theta = aggregate(theta, {agent: contribution(seed, agent, number, theta, iterations) for agent in chosen})
    return theta


RoundState = tuple[tuple[MemberInfo, ...], Groups]
"""The members, and whose agreement it needs."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is inside a record. value: the state of an agent's job, or theta; round_state: of a tree's own record."""

    phase: Phase
    round: int
    done: int
    complete: bool
    value: bytes
    round_state: RoundState | None = None


class Contents:
    """Every record that was ever sealed, by its digest: its bytes, wherever it is."""

    def __init__(self) -> None:
        self._found: dict[bytes, Content] = {}

    def seal(self, owner: Peer, tree: TreeId, version: int, content: Content, record_bytes: int) -> RecordSummary:
        """The record of this content; equal knowledge gives equal bytes, but for who made them."""
        said = (int(owner.id), version, owner.incarnation, content.phase, content.round, content.done, content.complete, content.value)
        digest = blake2b(repr(said).encode(), digest_size=DIGEST_BYTES).digest()
        self._found[digest] = content
        return RecordSummary(
            owner.id, tree, version, owner.incarnation, content.round, content.done, content.complete, record_bytes, digest
        )

    def open(self, record: RecordSummary) -> Content:
        return self._found[record.digest]

    def folded(self, theta: bytes, slots: Mapping[NodeId, Slot]) -> bytes:
        """The theta after these contributions, each at its factor."""
        return aggregate(theta, {agent: weighed(self.open(slot.record).value, slot.factor) for agent, slot in slots.items()})

    def members_on(self, record: RecordSummary) -> tuple[MemberInfo, ...]:
        """Whom a tree's own record names."""
        state = self.open(record).round_state
        return state[0] if state is not None else ()
