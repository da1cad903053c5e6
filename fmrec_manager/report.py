"""The status document of one tree: what `status --format json`, the live table and the demo read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fmrec_manager.liveness import Member
from fmrec_manager.retrieval import Recovery
from fmrec_manager.root import Root
from fmrec_manager.settings import TreeSettings
from protocol.identifiers import NodeId
from protocol.knowledge import Array
from protocol.wire.values import Progress, SubtreeDigest

PHASES = {"locating": "waiting", "committing": "train", "electing": "train", "aggregating": "train", "superseded": "halted"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a report is made of. now, ended: the loop's time, seconds; unix_offset: what makes a Unix time of it.

    theta_digest: of the newest version, empty before the first. progress: of the root's own children, by id; digest: the sums over the
    whole tree.
    """

    root: Root
    settings: TreeSettings
    theta_digest: bytes
    digest: SubtreeDigest
    progress: Mapping[NodeId, Progress]
    now: float
    ended: float | None
    unix_offset: float


def digest_of(theta: dict[str, Array]) -> bytes:
    """SHA-256 over theta's names, shapes, dtypes and bytes in the order of names: equal only for equal bits."""
    digest = sha256()
    for name in sorted(theta):
        tensor = theta[name]
        digest.update(f"{name}|{tensor.dtype}|{tensor.shape}|".encode())
        digest.update(tensor.tobytes())
    return digest.digest()


def digest_of_owners(owners: Iterable[NodeId]) -> str:
    """16 digits that tell whose contributions these are, whatever their order: equal only for the same agents, each as often."""
    return sha256(b"".join(owner.pack() for owner in sorted(owners))).hexdigest()[:16]


def tree_document(facts: Facts) -> dict[str, object]:
    """Everything that is to be seen of one tree."""
    root, settings = facts.root, facts.settings
    end = facts.ended if facts.ended is not None else facts.now
    began = root.first_round_at
    done_here = len(root.losses) - root.first_round
    per_round = (end - began) / done_here if began is not None and done_here > 0 else None
    left = per_round * (settings.rounds - len(root.losses)) if per_round is not None and root.stage != "done" else None
    names = {identifier: member.info.name for identifier, member in root.liveness.members.items()} | {root.tree: "the manager"}
    return {
        "tree_id": str(root.tree),
        "task": settings.task,
        "phase": PHASES.get(root.stage, root.stage),
        "stage": root.stage,
        "reason": root.reason,
        "round": root.next_round,
        "rounds": settings.rounds,
        "first_round": root.first_round,
        "seed": settings.seed,
        "loss": root.losses[-1] if root.losses else None,
        "losses": root.losses,
        "recovery": settings.recovery,
        "theta_digest": facts.theta_digest.hex() or None,
        "version": root.version,
        "members": [
            _member(member, facts.progress.get(identifier)) for identifier, member in sorted(root.liveness.members.items(), key=_by_name)
        ],
        "counts": root.liveness.counts(),
        "replicas": facts.digest.replicas_sum,
        "iterations": facts.digest.iterations_sum,
        "recoveries": [
            _recovery(recovery, names.get(recovery.agent, recovery.agent.short), names, facts.unix_offset) for recovery in root.recoveries
        ],
        "elapsed_s": round(end - (began if began is not None else end), 3),
        "time_left_s": round(left, 1) if left is not None else None,
        "results": root.results,
    }


def _by_name(item: tuple[object, Member]) -> tuple[int, str]:
    name = item[1].info.name
    return len(name), name


def _member(member: Member, progress: Progress | None) -> dict[str, object]:
    peer = member.info.peer
    return {
        "name": member.info.name,
        "id": str(peer.id),
        "address": str(peer.address),
        "pid": member.info.pid,
        "role": member.info.role,
        "state": member.state,
        "reason": member.reason,
        "incarnation": peer.incarnation,
        "round": progress.round if progress is not None else None,
        "iteration": progress.iteration if progress is not None else member.iteration if member.iteration >= 0 else None,
        "replicas": progress.replicas if progress is not None else None,
    }


def _recovery(recovery: Recovery, name: str, names: dict[NodeId, str], unix: float) -> dict[str, object]:
    record = recovery.record
    return {
        "agent": name,
        "incarnation": recovery.loss.incarnation,
        "cause": recovery.loss.cause,
        "reason": recovery.loss.reason,
        "silent_ms": round(1000 * recovery.loss.silent_s, 3),
        "noticed_unix_s": recovery.noticed + unix,
        "locate_ms": round(1000 * recovery.located_s, 3),
        "transfer_ms": round(1000 * recovery.transferred_s, 3),
        "total_ms": round(1000 * recovery.total_s, 3),
        "bytes": record.record_bytes if record is not None else None,
        "version": record.version if record is not None else None,
        "round": record.round if record is not None else None,
        "iteration": record.iteration if record is not None else None,
        "iterations_behind": recovery.iterations_behind,
        "holder": names.get(recovery.holder, str(recovery.holder)) if recovery.holder is not None else None,
        "outcome": recovery.outcome,
        "detail": recovery.reason,
    }


def last_word(root: Root, folder: Path | None) -> str:
    """Where the next start finds what it goes on from, of a run that is stopped now; folder: the manager's state directory. Empty where
    there is nothing to go on from: before theta_0, at the end, or with another root."""
    durable = root.version - (root.stage == "committing")
    if not durable or root.stage in ("done", "superseded"):
        return ""
    keepers = ["replicas on its agents"] if root.liveness.counts()["alive"] else []
    keepers += [str(folder)] if folder is not None else []
    kept = " and ".join(keepers) or "nobody: name a --state-dir next time"
    return f"stops in round {root.next_round} of {root.plan.rounds}; theta and round state are kept by {kept}"
