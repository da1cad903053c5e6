"""The faults of a run: one frozen set of options, named, or drawn from the seed, and printed before anything happens.

A specification is a list of presets and fields, later ones over earlier: "messages,crashes", "churn-60,silent_share=0.5", "drawn".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from random import Random


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in the safety phase. Rates are events a second, of one node (`_per_node_s`) or of the whole cluster (`_per_s`).

    A share is a probability, 0 to 1. The root of the tree is spared by all that kills and pauses, unless `root_too`.
    """

    crash_per_node_s: float = 0.0
    """Deaths after which the node may come back."""
    restart_share: float = 1.0
    """Of those that crash, how many come back under the same id with the next incarnation; for the others a new node comes."""
    down_mean_s: float = 3.0
    """How long it takes until it comes back."""
    disk_kept_share: float = 0.5
    """Of those that come back, how many still know the peers that they had; the others have only seeds."""
    new_address_share: float = 0.1
    """Of those that come back, how many do so at another address."""
    session_mean_s: float = 0.0
    """Churn: lives last so long on average (exponential), each end is followed by a new node with a new id. 0: no churn."""
    leave_share: float = 0.0
    """Of the sessions, how many end in order, with a goodbye."""
    silent_share: float = 0.0
    """Of all deaths, how many are of the host (silence: no reset, no refusal) and not of the process alone."""
    burst_share: float = 0.0
    """How many die in one instant, at the end of the safety phase."""
    root_too: bool = False
    """The root of the tree dies in the burst as well, and comes back after down_mean_s."""
    zone_per_s: float = 0.0
    """All nodes of one zone die in one instant; each comes back as one that crashed does."""
    pause_per_node_s: float = 0.0
    """SIGSTOP, and SIGCONT after a while."""
    pause_min_s: float = 0.1
    pause_max_s: float = 10.0
    slow_share: float = 0.0
    """How many nodes take slow_s to handle each event."""
    slow_s: float = 0.005
    stall_share: float = 0.0
    """Of the messages, how many stall (a lost packet), and all that follow on their connection with them."""
    stall_min_s: float = 0.2
    stall_max_s: float = 1.0
    reset_per_node_s: float = 0.0
    """A connection is reset, and what was unread in one or both directions is lost; both ends hear of it."""
    half_open_per_node_s: float = 0.0
    """One end of a connection is gone; the other learns of it when it next sends, or never."""
    partition_per_s: float = 0.0
    partition_share: float = 0.3
    """How many nodes are on the smaller side."""
    partition_one_way_share: float = 0.3
    """Of the partitions, how many stop messages in one direction only."""
    partition_min_s: float = 1.0
    partition_max_s: float = 15.0

    @property
    def harmless(self) -> bool:
        """Nobody dies, stops, lags behind or is cut off: whoever is declared dead all the same is so by mistake."""
        harm = (
            self.crash_per_node_s, self.session_mean_s, self.burst_share, self.zone_per_s, self.pause_per_node_s, self.slow_share,
            self.reset_per_node_s, self.half_open_per_node_s, self.partition_per_s,
        )  # fmt: skip
        return not any(harm)

    def __str__(self) -> str:
        """What differs from no faults at all, as a specification."""
        quiet = asdict(Faults())
        return ",".join(f"{name}={value:g}" for name, value in asdict(self).items() if value != quiet[name]) or "none"


PRESETS = {
    "none": Faults(),
    "calm": Faults(stall_share=0.01, stall_max_s=0.4),
    "messages": Faults(stall_share=0.01, reset_per_node_s=1 / 120, half_open_per_node_s=1 / 300),
    "stalls": Faults(stall_share=0.01),
    "crashes": Faults(crash_per_node_s=1 / 600, silent_share=0.3, restart_share=0.7),
    "pauses": Faults(pause_per_node_s=1 / 600, slow_share=0.02),
    "partition": Faults(partition_per_s=1 / 20),
    "churn-5": Faults(session_mean_s=5 * 60, silent_share=0.5),
    "churn-15": Faults(session_mean_s=15 * 60, silent_share=0.5),
    "churn-60": Faults(session_mean_s=60 * 60, silent_share=0.5),
    "churn-138": Faults(session_mean_s=138 * 60, silent_share=0.5),
    "burst-10": Faults(burst_share=0.1),
    "burst-50": Faults(burst_share=0.5),
    "wild": Faults(
        crash_per_node_s=1 / 600,
        restart_share=0.7,
        silent_share=0.3,
        pause_per_node_s=1 / 900,
        slow_share=0.02,
        stall_share=0.01,
        reset_per_node_s=1 / 120,
        half_open_per_node_s=1 / 300,
        partition_per_s=1 / 20,
        burst_share=0.1,
    ),
}


def drawn(rng: Random) -> Faults:
    """Each kind of fault with even chance, and how much of it."""
    found: dict[str, float | bool] = {
        "restart_share": rng.choice([0.0, 0.5, 1.0]),
        "down_mean_s": rng.choice([0.5, 3.0, 10.0]),
        "disk_kept_share": rng.choice([0.0, 0.5, 1.0]),
        "new_address_share": rng.choice([0.0, 0.2]),
        "silent_share": rng.choice([0.0, 0.3, 1.0]),
        "root_too": rng.random() < 0.3,
    }
    kinds: tuple[dict[str, tuple[float, ...]], ...] = (
        {"crash_per_node_s": (1 / 2400, 1 / 600)},
        {"session_mean_s": (900.0, 3600.0), "leave_share": (0.0, 0.5)},
        {"burst_share": (0.05, 0.1, 0.3)},
        {"pause_per_node_s": (1 / 2400, 1 / 600), "pause_max_s": (1.0, 10.0)},
        {"slow_share": (0.01, 0.05), "slow_s": (0.002, 0.01)},
        {"stall_share": (0.001, 0.01)},
        {"reset_per_node_s": (1 / 600, 1 / 60)},
        {"half_open_per_node_s": (1 / 600, 1 / 120)},
        {"partition_per_s": (1 / 30, 1 / 10), "partition_share": (0.02, 0.3, 0.5), "partition_max_s": (5.0, 20.0)},
    )
    for kind in kinds:
        if rng.random() < 0.5:
            found |= {name: rng.choice(values) for name, values in kind.items()}
    return replace(Faults(), **found)  # type: ignore[arg-type]


def parse(specification: str, rng: Random) -> Faults:
    """The faults that a specification names. ValueError, in a sentence, where it names what there is not."""
    faults, quiet = Faults(), asdict(Faults())
    kinds = {field.name: type(quiet[field.name]) for field in fields(Faults)}
    for part in filter(None, (piece.strip() for piece in specification.split(","))):
        name, given, value = part.partition("=")
        if given:
            if name not in kinds:
                raise ValueError(f"there is no fault {name!r}: {', '.join(kinds)}")
            try:
                faults = replace(faults, **{name: kinds[name](float(value))})
            except ValueError:
                raise ValueError(f"{name} is a number, not {value!r}") from None
            continue
        if name != "drawn" and name not in PRESETS:
            raise ValueError(f"there are no faults {name!r}: drawn, {', '.join(PRESETS)}, or a field=value")
        chosen = drawn(rng) if name == "drawn" else PRESETS[name]
        faults = replace(faults, **{field: value for field, value in asdict(chosen).items() if value != quiet[field]})
    return _checked(faults)


def _checked(faults: Faults) -> Faults:
    for name, value in asdict(faults).items():
        if not 0 <= value < float("inf") or (name.endswith("_share") and value > 1):
            raise ValueError(f"{name} must be {'between 0 and 1' if name.endswith('_share') else 'finite and not negative'}, not {value}")
    for kind in ("pause", "stall", "partition"):
        if getattr(faults, f"{kind}_min_s") > getattr(faults, f"{kind}_max_s"):
            raise ValueError(f"{kind}_min_s cannot exceed {kind}_max_s")
    return faults
