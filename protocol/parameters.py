"""Every period, limit and timeout of the overlay, each in one place.

Few are chosen; the rest follow from them, so that they always nest: a peer is suspected after `silence_max_s`, which is longer than
the heartbeats that it must have missed and the delay that the last one may have had; a probe ends within that; a look-up outlasts a
probe; a recovery outlasts a look-up. `validate()` says in one sentence which rule a set of values breaks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Literal

PlacementPolicy = Literal["local", "spread", "mixed"]


@dataclass(frozen=True, slots=True)
class OverlayParameters:
    """The settings of one overlay node. Times in seconds, sizes in bytes."""

    leaf_set_size: int = 12
    """L: L/2 neighbours on each side. More survive more simultaneous deaths and cost more probes (the paper: 12)."""
    heartbeat_interval_s: float = 0.2
    """How often ring neighbours and tree relatives say that they live; MSPastry's T_ls. Shorter: hangs noticed sooner, more messages."""
    heartbeat_misses: int = 2
    """Heartbeats that may be missed before silence is suspicion. More forgives a busy machine."""
    delay_max_s: float = 0.25
    """The longest that an answer from a healthy peer takes, its own scheduling included."""
    helpers: int = 3
    """How many others are asked to probe a suspect that gives no answer (SWIM's k)."""
    local_health_max: int = 3
    """Lifeguard: how often this node may add its own timeout to itself when it finds that it is the slow one."""
    raw_loss_target: float = 0.05
    """MSPastry's L_r: the share of messages that may meet a hop whose silent death is unnoticed; table entries are probed as often as
    that needs. Lower costs probes, higher costs retransmissions."""
    fan_out_max: int = 16
    """Children of one node in one tree; a newcomer beyond is handed to one of them. Fewer make deeper trees."""
    multicasts_kept_max: int = 32
    """The last multicasts of a tree, which every node keeps for children that missed some."""
    replicas: int = 3
    """k: how many leaf-set members hold each record beside its owner."""
    write_quorum: int = 2
    """How many of them must have stored a version before it is called durable."""
    placement: PlacementPolicy = "local"
    """Where agents have zones: replicas stay in the owner's zone (fast, private), leave it (they survive the rack), or both in turn."""
    retry_min_s: float = 0.1
    """First wait before a seed or a remembered dead node is dialled again; doubles, with jitter."""
    retry_max_s: float = 2.0
    """The longest such wait for a seed; of the dead one is dialled in this time. Shorter heals a partition sooner and costs dials."""
    transfer_floor_bytes_per_s: float = 4 * 1024 * 1024
    """A bulk transfer slower than this is given up for another holder."""
    control_frame_bytes_max: int = 1 << 20
    record_bytes_max: int = 1 << 30
    hops_max: int = 32
    held_messages_max: int = 256
    """Messages kept while this node joins or a hop is under suspicion."""
    remembered_dead_max: int = 64
    remembered_lives_max: int = 4096
    """Peers remembered as alive; beyond, those unheard for longest are forgotten (neighbours and relatives never are)."""
    trees_max: int = 1024
    """Trees that one node is in, forwarding included; a JOIN to another is refused."""
    held_records_max: int = 4096
    """Records that one node holds for others; what is pushed beyond is refused."""
    forget_after_s: float = 259200.0
    """Records of an agent that has been away for so long, 72 hours, are forgotten: its name will not be used again. Longer keeps what
    was learnt over longer outages, and costs room where many are killed whose names never come back."""
    path_max: int = 64
    """Longest path from the root of a tree that is believed."""
    send_queue_max: int = 1024
    """Messages waiting for one connection; more are dropped with a notice."""
    connections_max: int = 512
    """Control connections of one process, for all its nodes; beyond, the one that was silent longest is closed. More spare re-dialling
    and cost a file descriptor each."""

    @property
    def side(self) -> int:
        """L/2."""
        return self.leaf_set_size // 2

    @property
    def silence_max_s(self) -> float:
        """Silence of a neighbour beyond this is suspicion: all missed heartbeats and the longest delay of the last."""
        return self.heartbeat_misses * self.heartbeat_interval_s + self.delay_max_s

    @property
    def probe_timeout_s(self) -> float:
        """A fresh dial with its hello, or a probe, that takes longer has failed."""
        return 2 * self.delay_max_s

    @property
    def late_max_s(self) -> float:
        """A node whose own timer comes later than this is not well: half of what an answer may take is gone before it is begun."""
        return self.delay_max_s / 2

    @property
    def burial_min_s(self) -> float:
        """Who has said nothing for this long may be dead to others already: a suspicion, helpers asked, and their dials."""
        return self.delay_max_s + self.probe_timeout_s

    @property
    def hello_timeout_s(self) -> float:
        """Whoever connects has said hello within this, however slow it is, or is no peer."""
        return self.probe_timeout_s * (1 + self.local_health_max)

    @property
    def trial_max_s(self) -> float:
        """A suspect's trial: no answer to our dial within delay_max_s, then a dial by others, and their word."""
        return self.probe_timeout_s + 2 * self.delay_max_s

    @property
    def hold_max_s(self) -> float:
        """A routed message waits no longer than this for verdicts and neighbours; it is then dropped, and said to be."""
        return self.silence_max_s + 2 * self.trial_max_s

    @property
    def ack_timeout_min_s(self) -> float:
        """The next hop has at least this long to acknowledge a message, however near it is."""
        return self.delay_max_s / 5

    @property
    def exchange_interval_s(self) -> float:
        """How often one leaf-set member, each in turn, compares leaf sets with us."""
        return 12 * self.heartbeat_interval_s

    @property
    def row_interval_s(self) -> float:
        """How often one row of the routing table, each in turn, is compared with a node of that row."""
        return 60 * self.heartbeat_interval_s

    @property
    def table_probe_max_s(self) -> float:
        """A table entry unheard for this long is probed, however quiet the ring; MSPastry's T_rt is between silence_max_s and this."""
        return 300 * self.heartbeat_interval_s

    @property
    def join_timeout_s(self) -> float:
        """A JOIN that was not answered within this is tried again through the next seed."""
        return 4 * self.delay_max_s

    @property
    def orphan_max_s(self) -> float:
        """A member whose tree parent died has this long to be heard again through another: it must notice, probe and re-JOIN."""
        return self.verdict_max_s + self.join_timeout_s

    @property
    def upkeep_interval_s(self) -> float:
        """How often a holder tells of a copy that is not its own to keep, as long as it has it."""
        return 2 * self.exchange_interval_s

    @property
    def settle_s(self) -> float:
        """Within this after a node has come, those have told it of its record who had it in sight before."""
        return self.probe_timeout_s + self.delay_max_s

    @property
    def verdict_max_s(self) -> float:
        """Within this everyone in a neighbourhood has been heard, or been found dead."""
        return self.silence_max_s + self.trial_max_s

    @property
    def gather_timeout_s(self) -> float:
        """Who asks its leaf set for holdings answers with what it has after this."""
        return self.delay_max_s

    @property
    def look_up_timeout_s(self) -> float:
        """A look-up may be held while one hop is probed, and is then gathered."""
        return self.trial_max_s + self.gather_timeout_s + self.delay_max_s

    @property
    def mend_after_s(self) -> float:
        """A copy whose holder died is brought elsewhere after this, where a quorum is left: whoever died is being recovered meanwhile."""
        return 2 * self.delay_max_s

    @property
    def stall_max_s(self) -> float:
        """A transfer in which no byte has moved for so long has stalled: another holder is asked for the rest."""
        return 2 * self.delay_max_s

    @property
    def unfinished_kept_s(self) -> float:
        """What came of a record that broke off is kept so long: whoever failed is tried again within retry_max_s."""
        return 2 * self.retry_max_s

    @property
    def provide_max_s(self) -> float:
        """A holder waits so long for a version that it is asked for and does not have yet: whoever asks waits no longer."""
        return 2 * self.probe_timeout_s

    def transfer_timeout_s(self, record_bytes: int) -> float:
        """The longest that moving a record of this size may take."""
        return self.probe_timeout_s + record_bytes / self.transfer_floor_bytes_per_s

    def too_large(self, record_bytes: int) -> str | None:
        """None for a record of a size that may be, else why not."""
        if 0 <= record_bytes <= self.record_bytes_max:
            return None
        return f"a record of {record_bytes} bytes where at most {self.record_bytes_max} may be"

    def validate(self) -> None:
        """ValueError with one plain sentence for the first rule that does not hold."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (isfinite(value) and value > 0):
                raise ValueError(f"{field.name} must be above 0 and finite, not {value}")
        if self.leaf_set_size % 2:
            raise ValueError(f"leaf_set_size must be even, half on each side, not {self.leaf_set_size}")
        if self.write_quorum > self.replicas:
            raise ValueError(f"write_quorum ({self.write_quorum}) cannot exceed replicas ({self.replicas})")
        if self.replicas > self.leaf_set_size:
            raise ValueError(f"replicas ({self.replicas}) cannot exceed leaf_set_size ({self.leaf_set_size})")
        if self.probe_timeout_s > self.silence_max_s:
            raise ValueError(
                f"a probe ({self.probe_timeout_s:g} s, twice delay_max_s) must end within the silence that is suspicion "
                f"({self.silence_max_s:g} s): raise heartbeat_interval_s or heartbeat_misses"
            )
        if self.raw_loss_target >= 1:
            raise ValueError(f"raw_loss_target is a share of messages, below 1, not {self.raw_loss_target}")
        if self.fan_out_max < 2:
            raise ValueError(f"fan_out_max ({self.fan_out_max}) must be at least 2: a tree whose nodes have one child is a chain")
        if self.remembered_dead_max < 2:
            raise ValueError(f"remembered_dead_max ({self.remembered_dead_max}) must be at least 2: one that refused, one that fell silent")
        if self.connections_max < (relations := self.leaf_set_size + self.fan_out_max + 1):
            raise ValueError(f"connections_max ({self.connections_max}) must hold a leaf set, a parent and its children ({relations})")
        if self.forget_after_s < (least := 2 * self.upkeep_interval_s):
            raise ValueError(f"forget_after_s ({self.forget_after_s:g}) must be at least {least:g}: who holds a record tells of it before")
        if self.retry_min_s > self.retry_max_s:
            raise ValueError(f"retry_min_s ({self.retry_min_s}) cannot exceed retry_max_s ({self.retry_max_s})")


def loopback() -> OverlayParameters:
    """All processes on one machine: answers come within a scheduling delay."""
    return OverlayParameters()


def lan() -> OverlayParameters:
    """One site: a hang is noticed within about five seconds."""
    return replace(OverlayParameters(), heartbeat_interval_s=0.75, delay_max_s=0.4, retry_min_s=0.25, retry_max_s=10.0)


def wan() -> OverlayParameters:
    """Many sites over the public network: patience first, and few messages."""
    return replace(
        OverlayParameters(),
        heartbeat_interval_s=10.0,
        delay_max_s=3.0,
        raw_loss_target=0.1,
        retry_min_s=1.0,
        retry_max_s=60.0,
        transfer_floor_bytes_per_s=256 * 1024,
    )


PRESETS = {"loopback": loopback, "lan": lan, "wan": wan}
