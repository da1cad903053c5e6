"""The status document of one tree: what `status --format json`, the live table and the demo read."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from fmrec_manager.liveness import Member
from fmrec_manager.retrieval import Recovery
from protocol.identifiers import NodeId
from protocol.knowledge import Array
from protocol.wire.messages import Progress

if TYPE_CHECKING:
    from fmrec_manager.tree_host import TreeHost

PHASES = {"locating": "waiting", "committing": "train", "aggregating": "train"}


def theta_digest(theta: dict[str, Array]) -> str | None:
    """SHA-256 over theta's names, shapes, dtypes and bytes in the order of names; None where there is no theta."""
    if not theta:
        return None
    digest = sha256()
    for name in sorted(theta):
        tensor = theta[name]
        digest.update(f"{name}|{tensor.dtype}|{tensor.shape}|".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def tree_document(host: TreeHost, now: float) -> dict[str, object]:
    """Everything that is to be seen of one tree. `now`: the loop's time, seconds."""
    root, settings = host.root, host.settings
    tree = host.node.scribe.trees.get(host.tree)
    progress = {b.peer.id: b.progress for b in tree.children.values()} if tree is not None else {}
    unix = host.unix_offset
    end = host.ended if host.ended is not None else now
    began = root.first_round_at
    rounds_done = len(root.losses)
    per_round = (end - began) / rounds_done if began is not None and rounds_done else None
    digest = tree.digest() if tree is not None else None
    left = per_round * (settings.rounds - rounds_done) if per_round is not None and root.stage != "done" else None
    names = {identifier: member.info.name for identifier, member in root.liveness.members.items()} | {host.tree: "the manager"}
    return {
        "tree_id": str(host.tree),
        "task": settings.task,
        "phase": PHASES.get(root.stage, root.stage),
        "stage": root.stage,
        "reason": root.reason,
        "round": root.next_round,
        "rounds": settings.rounds,
        "seed": settings.seed,
        "loss": root.losses[-1] if root.losses else None,
        "losses": root.losses,
        "recovery": settings.recovery,
        "theta_digest": theta_digest(host.theta),
        "version": root.version,
        "members": [
            _member(member, progress.get(identifier)) for identifier, member in sorted(root.liveness.members.items(), key=_by_name)
        ],
        "counts": root.liveness.counts(),
        "replicas": digest.replicas_sum if digest is not None else 0,
        "iterations": digest.iterations_sum if digest is not None else 0,
        "recoveries": [_recovery(recovery, names.get(recovery.agent, recovery.agent.short), names, unix) for recovery in root.recoveries],
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
        "iteration": progress.iteration if progress is not None else member.iteration,
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
