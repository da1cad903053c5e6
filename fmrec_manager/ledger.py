"""The round state that a tree's record keeps beside theta: what a manager that starts again must know to go on.

It is JSON inside the record, checked by pydantic when it is read; a record is named and digested like any other.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from fmrec_manager.plan import Resumed
from fmrec_manager.root import Root
from fmrec_manager.selection import Seen
from protocol.errors import RecordInvalid
from protocol.identifiers import NodeId, Peer
from protocol.wire.values import MemberInfo


class LedgerMember(BaseModel):
    """One member as it was when the round was committed."""

    model_config = ConfigDict(frozen=True)

    id: str
    host: str
    port: int
    incarnation: int
    name: str
    role: str
    pid: int


class Ledger(BaseModel):
    """seed: the run's. losses: one a round. results: figures by target. seen: samples and norm of the gradient, by agentId of those on
    record. put_to: the electors whose agreement this version needs, in groups."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    seed: int
    losses: tuple[float, ...]
    members: tuple[LedgerMember, ...]
    results: dict[str, dict[str, float]]
    seen: dict[str, tuple[int, float | None]] = {}
    put_to: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def read(cls, state: bytes) -> Ledger:
        """The round state out of a record. RecordInvalid where it is none."""
        try:
            return cls.model_validate_json(state)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
            raise RecordInvalid(f"its round state cannot be read: {where} is no part of one") from error

    def infos(self) -> tuple[MemberInfo, ...]:
        """The members, as the overlay knows members."""
        return tuple(MemberInfo(Peer(NodeId(int(m.id, 16)), m.host, m.port, m.incarnation), m.name, m.role, m.pid) for m in self.members)

    def resumed(self, version: int, term: int, round_number: int) -> Resumed:
        """What the root goes on from."""
        seen = {NodeId(int(agent, 16)): Seen(samples, norm) for agent, (samples, norm) in self.seen.items()}
        put_to = tuple(tuple(NodeId(int(elector, 16)) for elector in group) for group in self.put_to)
        return Resumed(version, term, round_number, self.losses, self.infos(), self.results, seen, put_to)


def ledger_of(seed: int, root: Root) -> Ledger:
    """The round state of this root, as the version names it that is being committed."""
    rows = tuple(
        LedgerMember(
            id=str(m.peer.id), host=m.peer.host, port=m.peer.port, incarnation=m.peer.incarnation, name=m.name, role=m.role, pid=m.pid
        )
        for m in root.on_record
    )
    known = {m.peer.id: root.seen[m.peer.id] for m in root.on_record if m.peer.id in root.seen}
    seen = {str(agent): (said.samples, said.gradient_norm) for agent, said in known.items()}
    put_to = tuple(tuple(map(str, group)) for group in root.put_to)
    return Ledger(seed=seed, losses=tuple(root.losses), members=rows, results=root.results, seen=seen, put_to=put_to)
