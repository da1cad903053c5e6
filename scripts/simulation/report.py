"""What runs have found, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figures = dict[str, Any]
SUMS = (
    "routed", "delivered", "wrong_roots", "wrong_roots_excused", "lost", "lost_with_holder", "lost_and_said", "duplicates",
    "false_deaths", "false_deaths_excused", "events",
)  # fmt: skip
MEANS = ("hops_mean", "stretch", "control_msgs_per_s_per_node", "tree_msgs_per_s_per_node", "routing_msgs_per_s_per_node")
WORST = ("lookups_right_after_s", "trees_complete_after_s", "ring_right_after_s", "hops_max", "built_s", "nodes")


def header(options: Figures, faults: str) -> str:
    """Printed before anything happens."""
    chosen = ", ".join(f"{name} {value}" for name, value in options.items() if name != "faults")
    return f"{chosen}\nfaults {options['faults']}: {faults}"


def text(result: Figures) -> str:
    """One run, for people; on failure with its story and the command that replays it."""

    def after(name: str) -> str:
        value = result[name]
        return "never" if value is None else f"{value:g} s"

    def rates(name: str) -> str:
        return ", ".join(f"{kind} {rate:g}" for kind, rate in result[name].items()) or "none"

    wall = result["wall_s"] - result["build_wall_s"]
    lines = [
        f"built in {result['built_s']:.1f} virtual seconds, {result['build_wall_s']:.1f} s of ours; the rest took {wall:.1f} s; "
        f"{result['events']:,} events; {result['live']} nodes at the end",
        f"routed {result['routed']:,}: wrong roots {result['wrong_roots']} (excused {result['wrong_roots_excused']}), "
        f"lost {result['lost']} ({result['lost_with_holder']} with their holder, {result['lost_and_said']} said to be dropped), "
        f"duplicates {result['duplicates']}",
        f"hops {result['hops_mean']} (max {result['hops_max']}), delay stretch {result['stretch']}",
        f"after the last fault: look-ups right in {after('lookups_right_after_s')}, trees in {after('trees_complete_after_s')}, "
        f"leaf sets in {after('ring_right_after_s')}",
        f"false deaths {result['false_deaths']} (excused {result['false_deaths_excused']})",
        *(f"    {remark}" for remark in result["remarks"]),
        f"messages a second and node: control {result['control_msgs_per_s_per_node']}, trees {result['tree_msgs_per_s_per_node']}, "
        f"routing {result['routing_msgs_per_s_per_node']}",
        f"    {rates('sent')}",
        f"faults that struck: {rates('struck')}",
        f"facts: {rates('facts')}",
        f"trace digest {result['trace_digest']}",
    ]
    return "\n".join([*lines, *ending(result)])


def ending(result: Figures) -> list[str]:
    """The last lines on a run that failed, none on another."""
    if not result["failures"]:
        return []
    return ["", f"FAILED, seed {result['seed']}", *result["failures"], "", result["story"], "", f"to replay: {result['command']}"]


def added(results: Sequence[Figures], seeds: str, counts: Sequence[str]) -> Figures:
    """Several runs of any sort as one: these counts added, the failures of all."""
    return {
        "seed": seeds,
        "runs": len(results),
        **{name: sum(result[name] for result in results) for name in counts},
        "trace_digest": [result["trace_digest"] for result in results],
        "failures": [f"seed {result['seed']}: {failure}" for result in results for failure in result["failures"]],
        "commands": [result["command"] for result in results if result["failures"]],
    }


def summed(results: Sequence[Figures], seeds: str) -> Figures:
    """Several runs as one: counts added, means weighted by what was delivered, the worst of times."""
    total = added(results, seeds, SUMS)
    for name in MEANS:
        known = [result for result in results if result[name] is not None and result["delivered"]]
        weight = sum(result["delivered"] for result in known)
        total[name] = round(sum(result[name] * result["delivered"] for result in known) / weight, 4) if weight else None
    for name in WORST:
        known_values = [result[name] for result in results]
        total[name] = None if None in known_values else max(known_values)
    return total
