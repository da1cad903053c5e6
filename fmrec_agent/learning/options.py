"""What can be set about learning: the method's options and the task's, checked and frozen before torch is imported.

An unknown key is an error. The task's keys depend on `task.name` (parking where it is not given), so that an option of another
task is an error too and never silently ignored; in pydantic's error locations the task's name stands after `task`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveFloat, PositiveInt, Tag

SYNTHETIC = "synthetic"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ParkingOptions(_Frozen):
    """Forecasting a car park's occupancy 35 minutes ahead (tasks/parking.py)."""

    name: Literal["parking"] = "parking"
    data: str = Field(default=SYNTHETIC, min_length=1, description='"synthetic", or the folder of lots.csv and counts.csv')
    lot: str | None = Field(default=None, description="this lot, instead of the agent's index-th lot of its role")
    hidden: PositiveInt = Field(default=4, le=1024, description="size of the LSTM's hidden state")
    days: Literal[1, 3, 6, 24] = Field(default=3, description="how many days of data a target adapts on")
    loss: Literal["mse", "bce"] = Field(default="mse", description="squared error, or binary cross-entropy on the occupancy rate")
    data_seed: int = Field(default=0, ge=0, description="names the synthetic city pair")
    sources: PositiveInt = Field(default=30, le=10_000, description="number of synthetic source lots")
    targets: PositiveInt = Field(default=12, le=10_000, description="number of synthetic target lots")


class SinusoidOptions(_Frozen):
    """Few-shot regression of sinusoids (tasks/sinusoid.py)."""

    name: Literal["sinusoid"] = "sinusoid"
    shots: PositiveInt = Field(default=10, le=10_000, description="K, the support points of one sinusoid")
    queries: PositiveInt = Field(default=10, le=10_000, description="query points of one sinusoid")
    meta_batch: PositiveInt = Field(default=1, le=1024, description="sinusoids that a source draws in one iteration")
    hidden: PositiveInt = Field(default=40, le=1024, description="width of the two hidden layers")
    data_seed: int = Field(default=0, ge=0, description="names the targets' sinusoids")


def _task_name(value: Any) -> str | None:
    return value.get("name", "parking") if isinstance(value, dict) else getattr(value, "name", None)


TaskOptions = Annotated[
    Annotated[ParkingOptions, Tag("parking")] | Annotated[SinusoidOptions, Tag("sinusoid")],
    Discriminator(_task_name),
]


class LearningOptions(_Frozen):
    """One learner: its method (maml.py, loading.py), the method's options and its task."""

    learner: str = Field(default="maml", min_length=1, description="maml, fomaml (maml with first_order), or module:attribute")
    first_order: bool = Field(default=False, description="treat the inner gradient as a constant: cheaper, less exact")
    inner_rate: PositiveFloat = Field(default=0.1, description="alpha, the rate of the inner steps")
    inner_steps: PositiveInt = Field(default=1, le=1000, description="gradient steps from theta to phi")
    iterations_per_round: PositiveInt = Field(default=10, le=1_000_000, description="meta-gradients averaged in a contribution")
    batch: PositiveInt = Field(default=64, le=1_000_000, description="windows in a support batch, and in a query batch")
    adapt_iterations: PositiveInt = Field(default=400, le=1_000_000, description="steps of a target's adaptation")
    adapt_optimizer: Literal["adam", "sgd"] = "adam"
    adapt_rate: PositiveFloat = 0.02
    adapt_batch: PositiveInt = Field(default=256, le=1_000_000, description="windows in an adaptation batch")
    dtype: Literal["float32", "float64"] = "float32"
    task: TaskOptions = ParkingOptions()
