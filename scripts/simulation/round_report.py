"""What runs with records and rounds have found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figures = dict[str, Any]
SUMS = (
    "rounds", "double_contributions", "durable_lost", "committed_lost", "durables", "restores", "restored", "restored_behind", "lost",
    "manager_lives", "moved_mb", "events",
)  # fmt: skip


def text(result: Figures) -> str:
    """One run; on failure with its story and the command that replays it."""

    def counts(name: str) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in result[name].items()) or "none"

    done = "never" if result["done_after_s"] is None else f"{result['done_after_s']:g} s after the last fault"
    lines = [
        f"{result['rounds']} rounds committed, all done {done}; theta equals that of the undisturbed run: {result['theta_equal']}",
        f"P1 double contributions {result['double_contributions']}, P2 durable versions lost {result['durable_lost']}, "
        f"P6 committed rounds lost {result['committed_lost']}",
        f"{result['durables']} versions durable, {result['moved_mb']:g} MB moved; {result['restores']} looked for their own record, "
        f"{result['restored']} found one, {result['restored_behind']} were told that a newer one may be out of reach, "
        f"of {result['lost']} all copies had died at once; {result['manager_lives']} lives of the manager",
        f"faults that struck: {counts('struck')}",
        f"facts: {counts('facts')}",
        f"{result['events']:,} events, {result['wall_s']:.1f} s of ours; trace digest {result['trace_digest']}",
    ]
    if result["failures"]:
        lines += ["", f"FAILED, seed {result['seed']}", *result["failures"], "", result["story"], "", f"to replay: {result['command']}"]
    return "\n".join(lines)


def summed(results: Sequence[Figures], seeds: str) -> Figures:
    """Several runs as one."""
    total: Figures = {"seed": seeds, "runs": len(results), **{name: sum(result[name] for result in results) for name in SUMS}}
    total["theta_equal"] = all(result["theta_equal"] for result in results)
    total["trace_digest"] = [result["trace_digest"] for result in results]
    total["failures"] = [f"seed {result['seed']}: {failure}" for result in results for failure in result["failures"]]
    total["commands"] = [result["command"] for result in results if result["failures"]]
    return total
