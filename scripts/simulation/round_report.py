"""What runs with records and rounds have found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.simulation.report import Figures, added, ending

SUMS = (
    "rounds", "double_contributions", "durable_lost", "committed_lost", "given_up", "durables", "restores", "restored", "restored_behind",
    "lost", "retrieved", "retrieved_behind", "forgotten", "kept_too_long", "judged_abroad", "manager_lives", "takeovers", "moved_mb",
    "events",
)  # fmt: skip


def text(result: Figures) -> str:
    """One run; on failure with its story and the command that replays it."""

    def counts(name: str) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in result[name].items()) or "none"

    done = "never" if result["done_after_s"] is None else f"{result['done_after_s']:g} s after the last fault"
    equal = "" if result["theta_equal"] is None else f"; theta equals that of the undisturbed run: {result['theta_equal']}"
    lines = [
        f"{result['rounds']} rounds committed, all done {done}{equal}; slots filled by {counts('ways')}",
        f"P1 double contributions {result['double_contributions']}, P2 durable versions lost {result['durable_lost']}, "
        f"P6 committed rounds lost {result['committed_lost']}; left out without need {result['given_up']}",
        f"{result['durables']} versions durable, {result['moved_mb']:g} MB moved; {result['restores']} looked for their own record, "
        f"{result['restored']} found one, {result['restored_behind']} were told that a newer one may be out of reach, "
        f"of {result['lost']} all copies had died at once, or were being forgotten",
        f"{result['manager_lives']} lives of managers, {result['takeovers']} of them begun by standbys",
        f"{result['retrieved']} agents' records retrieved by the root, {result['retrieved_behind']} looks behind what was durable",
        f"{result['forgotten']} records forgotten of agents that never came back, {result['kept_too_long']} copies kept for too long",
        f"{result['judged_abroad']} records of zones that died had had time to be in another",
        f"faults that struck: {counts('struck')}",
        f"facts: {counts('facts')}",
        f"{result['events']:,} events, {result['wall_s']:.1f} s of ours; trace digest {result['trace_digest']}",
    ]
    return "\n".join([*lines, *ending(result)])


def summed(results: Sequence[Figures], seeds: str) -> Figures:
    """Several runs as one."""
    equal = [result["theta_equal"] for result in results]
    return added(results, seeds, SUMS) | {"theta_equal": None if None in equal else all(equal)}
