"""What a learner's state holds beside its tensors: where it stands, and its random generator between two draws. JSON, and checked."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from fmrec_agent.learning.learner import JobKind


class PCG64State(BaseModel):
    """numpy's PCG64 between two draws."""

    model_config = ConfigDict(extra="forbid", strict=True)
    state: int = Field(ge=0, lt=1 << 128)
    inc: int = Field(ge=0, lt=1 << 128)
    has_uint32: int = Field(ge=0, le=1)
    uinteger: int = Field(ge=0, lt=1 << 32)

    @classmethod
    def of(cls, generator: np.random.Generator) -> PCG64State:
        state = generator.bit_generator.state
        return cls(**state["state"], has_uint32=state["has_uint32"], uinteger=state["uinteger"])

    def generator(self) -> np.random.Generator:
        bits = np.random.PCG64()
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": self.state, "inc": self.inc},
            "has_uint32": self.has_uint32,
            "uinteger": self.uinteger,
        }
        return np.random.Generator(bits)


class Progress(BaseModel):
    """Where a learner stands, apart from its tensors. `kind` is None before the first job; `seed` names the run of the stream."""

    model_config = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")
    method: str
    options: str
    """A digest of the method's and the task's options, under which alone the rest has its meaning."""
    kind: JobKind | None = None
    round: int = 0
    seed: int = 0
    iteration: int = Field(default=0, ge=0)
    loss_sum: float = 0.0
    milestones: dict[str, float] = {}
    random: PCG64State | None = None
