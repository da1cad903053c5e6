"""What can be set about learning: the method's options and the task's, checked and frozen before torch is imported.

An unknown key is an error. The task's keys depend on `task.name` (parking where it is not given), so that an option of another
task is an error too and never silently ignored; in pydantic's error locations the task's name stands after `task`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

SYNTHETIC = "synthetic"
HARMONICS = 12
"""Of the day, that parking's linear model knows by default (docs/tasks.md)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ParkingOptions(_Frozen):
    """Forecasting a car park's occupancy 35 minutes ahead (tasks/parking.py)."""

    name: Literal["parking"] = "parking"
    data: str = Field(default=SYNTHETIC, min_length=1, description='"synthetic", or the folder of lots.csv and counts.csv')
    lot: str | None = Field(default=None, description="this lot, instead of the agent's index-th lot of its role")
    model: Literal["lstm", "linear"] = Field(default="lstm", description="tasks/parking.py, or tasks/parking_linear.py")
    hidden: PositiveInt = Field(default=4, le=1024, description="size of the LSTM's hidden state")
    decoder: Literal["last", "all"] = Field(default="last", description="the LSTM's hidden states that it reads: all in the published one")
    harmonics: int = Field(default=HARMONICS, ge=0, le=48, description="of the day, that the linear model knows")
    products: bool = Field(default=True, description="whether the linear model knows products of what it knows")
    days: Literal[1, 3, 6, 24] = Field(default=3, description="how many days of data a target adapts on")
    loss: Literal["mse", "bce"] = Field(default="mse", description="squared error, or binary cross-entropy on the occupancy rate")
    data_seed: int = Field(default=0, ge=0, description="names the synthetic city pair")
    sources: PositiveInt = Field(default=30, le=10_000, description="number of synthetic source lots")
    targets: PositiveInt = Field(default=12, le=10_000, description="number of synthetic target lots")

    @model_validator(mode="after")
    def _of_the_model(self) -> ParkingOptions:
        if self.model == "linear" and self.loss == "bce":
            raise ValueError('the linear model has no loss "bce": set learning.task.loss to "mse", or learning.task.model to "lstm"')
        if self.model == "linear" and self.decoder == "all":
            raise ValueError('the linear model has no decoder: leave learning.task.decoder out, or set learning.task.model to "lstm"')
        if self.model == "lstm" and self.harmonics != HARMONICS:
            raise ValueError('the LSTM has no harmonics: leave learning.task.harmonics out, or set learning.task.model to "linear"')
        if self.model == "lstm" and not self.products:
            raise ValueError('the LSTM has no products: leave learning.task.products out, or set learning.task.model to "linear"')
        return self


class SinusoidOptions(_Frozen):
    """Few-shot regression of sinusoids (tasks/sinusoid.py)."""

    name: Literal["sinusoid"] = "sinusoid"
    shots: PositiveInt = Field(default=10, le=10_000, description="K, the support points of one sinusoid")
    queries: PositiveInt = Field(default=10, le=10_000, description="query points of one sinusoid")
    meta_batch: PositiveInt = Field(default=1, le=1024, description="sinusoids that a source draws in one iteration")
    hidden: PositiveInt = Field(default=40, le=1024, description="width of the two hidden layers")
    activation: Literal["relu", "silu"] = Field(default="relu", description="of the hidden layers: the paper's, or a smooth one")
    data_seed: int = Field(default=0, ge=0, description="names the targets' sinusoids")


class SyntheticOptions(_Frozen):
    """Synthetic(alpha, beta), a logistic regression on each device (tasks/synthetic.py)."""

    name: Literal["synthetic"] = "synthetic"
    alpha: NonNegativeFloat = Field(default=1.0, le=1000, description="how far the devices' true models differ")
    beta: NonNegativeFloat = Field(default=1.0, le=1000, description="how far the devices' inputs differ")
    iid: bool = Field(default=False, description="one true model and one law of inputs for all devices")
    shots: PositiveInt = Field(default=20, le=49, description="samples that a target adapts on; the rest is its test")
    data_seed: int = Field(default=0, ge=0, description="names the devices")


class OmniglotOptions(_Frozen):
    """Few-shot recognition of handwritten characters (tasks/omniglot.py)."""

    name: Literal["omniglot"] = "omniglot"
    data: str = Field(min_length=1, description="a zip file of Omniglot, or a folder of such or of its pictures")
    ways: int = Field(default=5, ge=2, le=100, description="characters of one episode")
    shots: PositiveInt = Field(default=1, le=100, description="drawings of each that are adapted on")
    queries: PositiveInt = Field(default=15, le=100, description="drawings of each that are measured on")
    meta_batch: PositiveInt = Field(default=1, le=1024, description="episodes that a source draws in one iteration")
    jitter: NonNegativeFloat = Field(default=0.0, le=4, description="how strongly drawings are bent at random: a source's, and copies")
    copies: int = Field(default=0, ge=0, le=100, description="bent copies of each drawing that a target adapts on beside it")
    channels: PositiveInt = Field(default=32, le=1024, description="of each of the four convolutions")
    sources: PositiveInt = Field(default=1, le=10_000, description="sources among which the characters are dealt out")
    held_out: PositiveInt = Field(default=40, le=10_000, description="characters that targets alone have")
    data_seed: int = Field(default=0, ge=0, description="names the split of the characters and the targets' episodes")

    @model_validator(mode="after")
    def _bent(self) -> OmniglotOptions:
        if self.copies and not self.jitter:
            raise ValueError(
                "copies that are not bent add nothing: set learning.task.jitter above 0 (1, say), or learning.task.copies to 0"
            )
        return self


def _task_name(value: Any) -> str | None:
    return value.get("name", "parking") if isinstance(value, dict) else getattr(value, "name", None)


TaskOptions = Annotated[
    Annotated[ParkingOptions, Tag("parking")]
    | Annotated[SinusoidOptions, Tag("sinusoid")]
    | Annotated[SyntheticOptions, Tag("synthetic")]
    | Annotated[OmniglotOptions, Tag("omniglot")],
    Discriminator(_task_name),
]


METHODS: Mapping[str, Mapping[str, object]] = {
    "maml": {"inner_rate": 0.1, "inner_steps": 1, "first_order": False, "step_losses": ()},
    "fomaml": {"inner_rate": 0.1, "inner_steps": 1, "step_losses": ()},
    "meta-sgd": {
        "inner_steps": 1,
        "first_order": False,
        "step_losses": (),
        "rate_min": 0.005,
        "rate_max": 0.1,
        "learn_rates": True,
        "log_rates": False,
        "adapt_optimizer": "learnt",
        "adapt_iterations": 1,
    },
    "reptile": {"inner_rate": 0.02, "inner_steps": 5},
    "per-fedavg": {"inner_rate": 0.01, "local_rate": 0.001, "hessian": "free", "delta": 0.001, "iterations_per_round": 4},
    "lin": {"inner_rate": 0.01, "local_rate": 0.01, "first_order": False},
    "admm": {"inner_rate": 0.01, "delta": 0.001, "rho": 10.0, "prior": 0.0},
    "fedavg": {"local_rate": 0.1},
    "ridge": {"iterations_per_round": 1, "adapt_iterations": 1, "dtype": "float64"},
}
"""Each method's own options with its defaults: those of its paper where docs/learning.md says so, for its paper's tasks."""
METHOD_KEYS = frozenset(
    (
        *("inner_rate", "inner_steps", "first_order", "step_losses", "local_rate", "hessian", "delta", "rho", "prior"),
        *("rate_min", "rate_max", "learn_rates", "log_rates"),
    )
)
"""What some methods read and others don't; every other option serves all of them."""


class LearningOptions(_Frozen):
    """One learner: its method (loading.py), the method's options and its task. METHODS says whose each option is, and its default."""

    learner: str = Field(default="maml", min_length=1, description="a method by name (METHODS), or module:attribute")
    first_order: bool = Field(default=False, description="treat the inner gradient as a constant: cheaper, less exact")
    inner_rate: PositiveFloat = Field(default=0.1, description="alpha, the rate of the inner steps")
    inner_steps: PositiveInt = Field(default=1, le=1000, description="gradient steps from theta to phi")
    step_losses: tuple[NonNegativeFloat, ...] = Field(
        default=(), description="the weight of the query loss after each inner step; none: the last step's alone"
    )
    local_rate: PositiveFloat = Field(default=0.01, description="beta, the rate of the steps that an agent takes for itself in a round")
    hessian: Literal["free", "none"] = Field(default="free", description="by a difference of two gradients, or left out")
    delta: PositiveFloat = Field(default=0.001, description="how far from theta that difference is taken, in units of the gradient")
    rho: PositiveFloat = Field(default=10.0, description="ADMM's penalty; the step of theta goes with 1 / rho")
    prior: NonNegativeFloat = Field(default=0.0, description="lambda, how strongly ADMM holds theta to what the run started from")
    rate_min: PositiveFloat = Field(default=0.005, description="learnt rates start at random between this")
    rate_max: PositiveFloat = Field(default=0.1, description="and this")
    learn_rates: bool = Field(default=True, description="false: the rates stay what they were at first")
    log_rates: bool = Field(default=False, description="learn the rates' logarithms: they stay positive, and change by factors")
    iterations_per_round: PositiveInt = Field(default=10, le=1_000_000, description="draws of a round: averaged, or a local step each")
    batch: PositiveInt = Field(default=64, le=1_000_000, description="windows in a support batch, and in a query batch")
    gradient_norm_max: NonNegativeFloat = Field(default=0.0, description="a draw's vector is shortened to this norm; 0: left as it is")
    tasks_at_once: PositiveInt = Field(default=1024, le=1_000_000, description="of a draw's tasks, how many are computed together")
    adapt_iterations: PositiveInt = Field(default=400, le=1_000_000, description="steps of a target's adaptation")
    adapt_optimizer: Literal["adam", "sgd", "learnt"] = Field(default="adam", description="learnt: by meta-sgd's rates")
    adapt_rate: PositiveFloat = Field(default=0.02, description="of adam and sgd")
    adapt_batch: PositiveInt = Field(default=256, le=1_000_000, description="windows in an adaptation batch")
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA where there is one")
    task: TaskOptions = ParkingOptions()

    @model_validator(mode="before")
    @classmethod
    def _of_the_method(cls, data: Any) -> Any:
        """The method's own defaults under what is given; ValueError for an option of another method."""
        if not isinstance(data, dict):
            return data
        name = data.get("learner", "maml")
        own = METHODS.get(name) if isinstance(name, str) else None
        if own is None:
            return data
        for key in sorted(METHOD_KEYS & data.keys() - own.keys()):
            having = ", ".join(method for method, options in METHODS.items() if key in options)
            raise ValueError(f"{key} is an option of {having}, not of {name}: leave it out, or choose another learner")
        return {**own, **data}

    @model_validator(mode="after")
    def _rates_in_order(self) -> LearningOptions:
        if self.rate_min > self.rate_max:
            raise ValueError(f"rate_min ({self.rate_min}) cannot exceed rate_max ({self.rate_max})")
        return self

    @model_validator(mode="after")
    def _a_weight_a_step(self) -> LearningOptions:
        if self.step_losses and (len(self.step_losses) != self.inner_steps or not any(self.step_losses)):
            raise ValueError(
                f"step_losses ({list(self.step_losses)}) must be one weight for each of the inner_steps ({self.inner_steps}), "
                "not all of them 0; or empty for the last step's loss alone"
            )
        return self

    @property
    def step_weights(self) -> tuple[float, ...]:
        """`step_losses`, or what it stands for where it is empty: one weight for each inner step."""
        return self.step_losses or (*(0.0,) * (self.inner_steps - 1), 1.0)

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]  # as in pydantic
        """(name, value) of each option but other methods' own, so that what is shown can be read back."""
        own = METHODS.get(self.learner, METHOD_KEYS)
        return ((key, value) for key, value in super().__iter__() if key not in METHOD_KEYS or key in own)

    @model_serializer(mode="wrap")
    def _own(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shown = dict(self)
        return {key: value for key, value in serialise(self).items() if key in shown}
