"""What can be set about the agents of one machine: who they are, where they listen, whom they join, and how they learn.

One `fmrec-agent start` runs `count` agents, each its own process and Pastry node. What differs between them follows from
their index 0 .. count-1: name, role and port. protocol/aio/settings.py merges file, variables and command line into this.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmrec_agent.learning.learner import Role
from fmrec_agent.learning.options import LearningOptions
from protocol.aio.settings import (
    Addresses,
    ListenHost,
    LogLevel,
    Name,
    OverlaySettings,
    Settings,
    StateDir,
    out_of_reach,
    parse_address,
)
from protocol.identifiers import Address

FIRST_PORT = 7710
"""Where `port = "auto"` begins to look; 7700 is the manager's, and a few agents started by hand fit between."""
PORTS_END = 32768
"""Above are the ports that Linux gives to outgoing connections: one of them can be taken at any moment."""

Port = Annotated[int, Field(ge=1, le=65535)]


class AgentSettings(Settings):
    """The settings of `fmrec-agent start`. Nothing need be set where the manager is on the same machine."""

    cluster: Name = "fmrec"
    """Peers of another cluster are refused: two runs on one network never mix."""
    name: Name = "agent"
    """The agentId is made from it, so that a restart is the same agent. With count above 1 the agents are name-0, name-1, ..."""
    count: int = Field(default=1, ge=1, le=1024)
    """Agents to start, one process each."""
    zone: str = Field(default="", max_length=64)
    """The rack or site of these agents, where there are several: agents of one zone are ring neighbours, and overlay.placement says
    whether their replicas stay in it. An agent that moves to another zone is another agent."""
    host: ListenHost = "127.0.0.1"
    """The address to listen at and to be told to peers; of this machine alone, unless it is changed."""
    port: Port | Literal["auto"] = "auto"
    """The first agent's port, the next one's is one higher; "auto" takes the first free one from 7710 upwards, below 32768."""
    join: Addresses = ("127.0.0.1:7700",)
    """Where to ask for the ring: the manager, or any live peers. More survive the death of one."""
    state_dir: StateDir | None = None
    """Where records outlive the process. Without it, replicas are in memory and die with their holder."""
    restart: Literal["no", "on-failure"] = "no"
    """on-failure starts an agent again that died; exact recovery needs this or somebody who does it."""
    restarts_max: int = Field(default=10, ge=1, le=1000)
    """Restarts of one agent within a minute; at more it is broken, and left dead."""
    role: Role | None = None
    """The role of all agents: a source trains theta, a target adapts it. Without it, `sources` decides."""
    sources: int | None = Field(default=None, ge=0)
    """The first so many agents are sources and the rest targets. Without it and without `role`, all are sources."""
    tree: Name = "main"
    """The tree to join; the manager must root one of this name and task."""
    task: str = Field(default="parking", min_length=1, max_length=128)
    """The task of that tree; with the tree's name it makes the treeId."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Iterations from one replicated snapshot to the next. Fewer lose less work at a death and send more (the paper: 50)."""
    record_store_bytes_max: int = Field(default=2 * 1024**3, ge=1)
    """Bytes of others' records that one agent holds; beyond this it refuses, and the owner asks the next neighbour."""
    record_compression: Literal["none", "zstd"] = "none"
    """zstd spares little of trained weights (a tenth) and much of what is zero or repeats, and takes a few ms a megabyte."""
    replica_precision: Literal["full", "bf16"] = "full"
    """bf16 halves replicas and keeps 8 bits of each weight's 24: a restored agent takes another course, so not with recovery exact."""
    log_level: LogLevel = "info"
    """debug tells every message."""
    overlay: OverlaySettings = OverlaySettings()
    """The ring's periods and limits; the same in all processes of a cluster."""
    learning: LearningOptions = LearningOptions()
    """The method, its options and the data."""

    def name_of(self, index: int) -> str:
        """The name of the agent at this index: its own where there is one agent, else numbered."""
        return self.name if self.count == 1 else f"{self.name}-{index}"

    def role_of(self, index: int) -> Role:
        """The role of the agent at this index."""
        if self.sources is not None:
            return "source" if index < self.sources else "target"
        return self.role or "source"

    def ports_of(self, index: int) -> range:
        """The ports that the agent at this index tries, in order; one only where the port was given."""
        if self.port == "auto":
            return range(FIRST_PORT + index, PORTS_END)
        return range(self.port + index, self.port + index + 1)

    def index_in_role(self, index: int) -> int:
        """Which one of its role the agent at this index is, from 0: it picks the data."""
        return sum(self.role_of(before) == self.role_of(index) for before in range(index))

    def seeds(self) -> tuple[Address, ...]:
        """`join`, parsed."""
        return tuple(parse_address(text) for text in self.join)

    @model_validator(mode="after")
    def _can_be_dialled(self) -> AgentSettings:
        if (seed := out_of_reach(self.host, self.seeds())) is not None:
            raise ValueError(
                f"host ({self.host}) can be dialled from this machine alone, and join names {seed}: "
                "set host, or the HOST of --listen, to an address of this machine that peers there can dial"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> AgentSettings:
        if self.role is not None and self.sources is not None:
            raise ValueError(f"role ({self.role}) and sources ({self.sources}) exclude each other: sources gives both roles")
        if self.sources is not None and self.sources > self.count:
            raise ValueError(f"sources ({self.sources}) cannot exceed count ({self.count})")
        if self.port != "auto" and self.port + self.count - 1 > 65535:
            raise ValueError(f"port ({self.port}) leaves no room for {self.count} agents below 65536, one port each")
        if len(self.name_of(self.count - 1)) > 64:
            raise ValueError(f"name ({self.name}) is too long: with the agent's number it has more than 64 characters")
        if ":" not in self.learning.learner and self.task != self.learning.task.name:
            raise ValueError(f"task ({self.task}) must be learning.task.name ({self.learning.task.name}): set both to the same")
        if self.record_store_bytes_max < self.overlay.parameters().record_bytes_max:
            raise ValueError(
                f"record_store_bytes_max ({self.record_store_bytes_max}) must hold one record, "
                f"overlay.record_bytes_max ({self.overlay.parameters().record_bytes_max})"
            )
        return self
