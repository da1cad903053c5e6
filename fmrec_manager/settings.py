"""What can be set about the manager: where it listens, which trees it roots, and how each tree's rounds are run and recovered.

Deadlines nest (promise P8): a round outlasts noticing a silent agent, probing it and looking up its record, else no recovery
could ever end within its round. protocol/aio/settings.py merges file, variables and command line into this.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fmrec_manager.aggregation_rule import AggregationRule, RuleName
from fmrec_manager.selection import Policy
from protocol.aio.settings import (
    Addresses,
    Listen,
    LogLevel,
    Name,
    OverlaySettings,
    Settings,
    StateDir,
    out_of_reach,
    parse_address,
)
from protocol.identifiers import Address
from protocol.parameters import OverlayParameters
from protocol.wire.messages import RecoveryMode


class TreeSettings(Settings):
    """One tree: its task, its rounds, what counts as enough, and what is done about who is missing. Times in seconds."""

    task: str = Field(default="parking", min_length=1, max_length=128)
    """The task of the tree; with the tree's name it makes the treeId. Agents must say the same."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """Fixes theta_0 and every stream of chance: equal seeds and members give equal bits."""
    rounds: int = Field(default=60, ge=1)
    """Rounds of training."""
    recovery: RecoveryMode = "exact"
    """exact waits for a dead agent to be restarted, and theta stays as if undisturbed; substitute takes its replica; drop neither."""
    sources_min: int = Field(default=1, ge=1)
    """Sources to wait for before the first round. More makes runs comparable; fewer starts sooner."""
    targets_min: int = Field(default=0, ge=0)
    """Targets to wait for before the first round."""
    adapt: bool = True
    """After the last round, let the targets adapt theta and report their test loss."""
    weighting: Literal["samples", "uniform"] = "samples"
    """samples: by |D_i|, so that each datum counts the same; uniform: each agent counts the same."""
    aggregation: RuleName = "weighted_mean"
    """What is made of the contributions: median, trimmed_mean and krum withstand wrong ones, and learn slower where there are none."""
    trim: float = Field(default=0.1, ge=0, lt=0.5)
    """trimmed_mean: share of the values left out at either end. More withstands more wrong agents and uses less of what the right ones
    say."""
    byzantine: int = Field(default=1, ge=0)
    """krum: f, how many agents may be wrong; a round needs 2 f + 3 contributions."""
    krum_selected: int = Field(default=1, ge=1)
    """krum: m, how many contributions are averaged; 1 is Krum, more is Multi-Krum, less noisy. A round needs f + m."""
    selection: Policy = "all"
    """Which sources train in a round: all, a random fraction, by data size (samples), or by what they add to the loss's reduction
    (nufm)."""
    selection_fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the sources that selection chooses, read where it is not all. Less costs less work a round and takes more rounds."""
    nufm_lambda_1: float = Field(default=0.0, ge=0)
    """nufm: how far the agents' objectives lie apart, on the scale of their gradients' norms. 0 ranks by norm alone."""
    nufm_lambda_2: float = Field(default=0.0, ge=0)
    """nufm: what few samples add to that; divided by the square root of their number."""
    server_optimizer: Literal["sgd", "momentum", "adam", "yogi"] = "adam"
    """What turns the aggregate into a step of theta: adam needs least tuning, yogi forgives sparse gradients, sgd keeps no state."""
    server_rate: float = Field(default=0.02, gt=0)
    """The step's rate. Higher learns faster until it diverges."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """How much of the last step the next one keeps; read by server_optimizer momentum alone."""
    quorum: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the expected contributions that a round needs at its deadline. Less forgives stragglers, losing their data."""
    round_deadline_s: float = Field(default=30.0, gt=0)
    """After this a round takes what it has, if that is a quorum. Longer forgives slow agents; fast ones wait."""
    deadline: Literal["fixed", "learnt"] = "fixed"
    """learnt: from when contributions came in earlier rounds, with round_deadline_s as the longest; a hung agent is then not waited for."""
    deadline_quantile: float = Field(default=0.9, gt=0, le=1)
    """learnt: this share of earlier contributions came within what the factor multiplies. Lower waits less for the slowest agents."""
    deadline_factor: float = Field(default=3.0, ge=1)
    """learnt: how many times as long a round may take. Less gives up on stragglers sooner."""
    exact_wait_s: float = Field(default=600.0, gt=0)
    """exact: the longest wait for a dead agent's restart; then the tree halts and says for whom it waits."""
    staleness_max: int = Field(default=5, ge=0)
    """substitute: a replica more rounds behind than this is not used; an old gradient can do harm."""
    staleness_discount: float = Field(default=0.5, gt=0, le=1)
    """substitute: each round behind multiplies a replica's weight by this; 1 trusts old ones fully. Read by weighted_mean alone."""

    @property
    def rule(self) -> AggregationRule:
        """How contributions are aggregated."""
        return AggregationRule(self.aggregation, self.trim, self.byzantine, self.krum_selected)


def noticed_s(overlay: OverlayParameters) -> float:
    """How long noticing a silent agent, probing it and looking up its record may take."""
    return overlay.silence_max_s + overlay.probe_timeout_s + overlay.look_up_timeout_s


class ManagerSettings(Settings):
    """The settings of `fmrec-manager serve`. Nothing need be set for one tree on one machine."""

    cluster: Name = "fmrec"
    """Peers of another cluster are refused: two runs on one network never mix."""
    listen: Listen = "127.0.0.1:7700"
    """The address to listen at and to be told to peers; of this machine alone, unless it is changed."""
    join: Addresses = ()
    """Live peers of a ring that exists already; without any, the manager waits to be joined."""
    standby: bool = False
    """Root the trees only when their manager is gone: watch it until then, through the peers that `join` names."""
    state_dir: StateDir | None = None
    """Where theta and round state outlive the process. Without it, a restart finds them on the agents alone."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where aggregation runs; auto takes the GPU where there is one."""
    log_level: LogLevel = "info"
    """debug tells every message."""
    overlay: OverlaySettings = OverlaySettings()
    """The ring's periods and limits; the same in all processes of a cluster."""
    tree: dict[Name, TreeSettings] = Field(default={"main": TreeSettings()}, min_length=1)
    """The trees by name. A source that names any replaces the default `main`."""

    @property
    def address(self) -> Address:
        """`listen`, parsed."""
        return parse_address(self.listen)

    def seeds(self) -> tuple[Address, ...]:
        """`join`, parsed."""
        return tuple(parse_address(text) for text in self.join)

    @model_validator(mode="after")
    def _can_be_dialled(self) -> ManagerSettings:
        if (seed := out_of_reach(self.address.host, self.seeds())) is not None:
            raise ValueError(
                f"listen ({self.listen}) can be dialled from this machine alone, and join names {seed}: "
                "set --listen to an address of this machine that peers there can dial"
            )
        return self

    @model_validator(mode="after")
    def _standby_knows_where(self) -> ManagerSettings:
        if self.standby and not self.join:
            raise ValueError("a standby must be told where the ring is: name the manager, and an agent or two, with --join HOST:PORT")
        return self

    @model_validator(mode="after")
    def _sources_suffice(self) -> ManagerSettings:
        for name, tree in self.tree.items():
            needed = tree.rule.contributions_min
            if tree.sources_min < needed:
                raise ValueError(f"tree.{name}: {tree.rule} needs {needed} contributions a round: set sources_min to {needed} or more")
        return self

    @model_validator(mode="after")
    def _deadlines_nest(self) -> ManagerSettings:
        least_s = noticed_s(self.overlay.parameters())
        for name, tree in self.tree.items():
            for key in ("round_deadline_s", "exact_wait_s"):
                if getattr(tree, key) <= least_s:
                    raise ValueError(
                        f"tree.{name}.{key} ({getattr(tree, key)}) must exceed the {least_s:.3g} s that noticing a silent "
                        f"agent and looking up its record may take with this overlay (preset {self.overlay.preset})"
                    )
        return self
