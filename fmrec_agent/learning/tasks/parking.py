"""The parking task (DESIGN 10; reference [16] of the paper): occupancy 35 minutes ahead from the last half hour.

1. A window is 6 steps of 5 minutes, x[t] .. x[t+5], and its target x[t+12], 35 minutes (7 steps) after the last one.
2. A source lot's windows: support from the first 60 % of time, query from the next 20 %. A target lot is tested on the last 20
   % and adapts on the `days` days right before. A window lies within one part as a whole, target included, so nothing of the
   test is seen earlier.
3. The published model is an LSTM over the 6 steps (Hochreiter & Schmidhuber; torch's gates i, f, g, o) and a linear decoder from the last
   hidden state, or from all six, as the published code has it (with `hidden` = 1: 23 parameters). It is a plain function of its
   parameters, made of operations that can be differentiated twice.
4. The other model is linear (parking_linear.py) and sees the time of day as well. It is cheap, so its draws are all of the data: a source's
   are its last support days in blocks of `days` days, a task each, as long as a target's data, and each with the whole query part.
5. Metric: RMSE x 100, in percentage points of capacity. Persistence (in 35 minutes it will be as now) is a strong baseline:
   always beside it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from fmrec_agent.learning.learner import LearnerError, Role
from fmrec_agent.learning.options import SYNTHETIC, LearningOptions, ParkingOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task, sample
from fmrec_agent.learning.tasks.parking_data import STEPS_PER_DAY, Lot, read_lot
from fmrec_agent.learning.tasks.parking_linear import linear_forecast, number_of_features
from fmrec_agent.learning.tasks.synthetic_parking import synthetic_lot

STEPS_IN = 6
STEPS_AHEAD = 7
SUPPORT_END, TEST_START = 60, 80  # per cent of time


def windows(occupancy: npt.NDArray[np.float64], start: int, end: int, dtype: torch.dtype, *, clock: bool = False) -> Batch:
    """All windows within steps [start, end): inputs [end - start - 12, 6], targets [end - start - 12].

    clock: a seventh input, the time of day at the window's last step, in [0, 1); step 0 is midnight.
    """
    part = occupancy[start:end]
    inputs = np.lib.stride_tricks.sliding_window_view(part[:-STEPS_AHEAD], STEPS_IN)
    if clock:
        steps = start + STEPS_IN - 1 + np.arange(len(inputs))
        inputs = np.column_stack([inputs, steps % STEPS_PER_DAY / STEPS_PER_DAY])
    return torch.tensor(inputs, dtype=dtype), torch.tensor(part[STEPS_IN + STEPS_AHEAD - 1 :], dtype=dtype)


def lstm_forecast(parameters: Parameters, inputs: Tensor) -> Tensor:
    """The decoder's output [n] for occupancies [n, 6], by torch.nn.LSTM's equations from a zero state.

    The decoder reads the last hidden state, or all six in their order where its weight is six times as wide.
    """
    bias = parameters["lstm.bias_ih"] + parameters["lstm.bias_hh"]
    driven = inputs.T.unsqueeze(-1) * parameters["lstm.weight_ih"].T + bias
    recurrent = parameters["lstm.weight_hh"].T
    first, *rest = driven.unbind(0)
    hidden, cell = _cell(first, None)
    states = [hidden]
    for gates in rest:
        hidden, cell = _cell(torch.addmm(gates, hidden, recurrent), cell)
        states.append(hidden)
    decoder = parameters["decoder.weight"]
    read = torch.cat(states, -1) if decoder.shape[-1] > hidden.shape[-1] else hidden
    return torch.addmm(parameters["decoder.bias"], read, decoder.T).squeeze(-1)


def _cell(gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    put, keep, candidate, show = gates.chunk(4, -1)
    fresh = torch.sigmoid(put) * torch.tanh(candidate)
    cell = fresh if cell is None else torch.addcmul(fresh, torch.sigmoid(keep), cell)
    return torch.sigmoid(show) * torch.tanh(cell), cell


class Parking(Task):
    """The model and its loss; `ParkingSource` and `ParkingTarget` add the data."""

    def __init__(self, options: ParkingOptions, dtype: torch.dtype) -> None:
        self._options = options
        self._dtype = dtype

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Uniform in +-1 / sqrt(hidden), like torch.nn.LSTM and a Linear after its last state; zero for the linear model."""
        if self._options.model == "linear":
            features = number_of_features(self._options.harmonics, products=self._options.products)
            return {"weight": torch.zeros(features, dtype=self._dtype)}
        hidden = self._options.hidden
        read = hidden * (STEPS_IN if self._options.decoder == "all" else 1)
        shapes = {
            "lstm.weight_ih": (4 * hidden, 1),
            "lstm.weight_hh": (4 * hidden, hidden),
            "lstm.bias_ih": (4 * hidden,),
            "lstm.bias_hh": (4 * hidden,),
            "decoder.weight": (1, read),
            "decoder.bias": (1,),
        }
        generator, bound = stream("parking parameters", seed), hidden**-0.5
        return {key: torch.tensor(generator.uniform(-bound, bound, shape), dtype=self._dtype) for key, shape in shapes.items()}

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        """Squared error of the rate; or binary cross-entropy, where the decoder yields logits and rates above 1 count as 1."""
        inputs, targets = batch
        output = self._output(parameters, inputs)
        if self._options.loss == "bce":
            return functional.binary_cross_entropy_with_logits(output, targets.clamp(0, 1))
        return functional.mse_loss(output, targets)

    def forecast(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Occupancy rates [n] for occupancies [n, 6] (linear: and the time of day, [n, 7])."""
        output = self._output(parameters, inputs)
        return torch.sigmoid(output) if self._options.loss == "bce" else output

    def _output(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        if self._options.model == "linear":
            return linear_forecast(parameters["weight"], inputs, self._options.harmonics, products=self._options.products)
        return lstm_forecast(parameters, inputs)

    def _part(self, lot: Lot, start: int, end: int) -> Batch:
        """All windows of the lot within steps [start, end), as the model wants them. LearnerError where there is none."""
        if end - start < STEPS_IN + STEPS_AHEAD:
            raise LearnerError(
                f"{lot.label} has too few rows ({len(lot.occupancy)}): "
                f"every part of it needs {STEPS_IN + STEPS_AHEAD} steps; give more"
            )
        return windows(lot.occupancy, start, end, self._dtype, clock=self._options.model == "linear")


class ParkingSource(Parking, SourceTask):
    """A lot that trains: support 0-60 % of time, query 60-80 %."""

    def __init__(self, options: ParkingOptions, lot: Lot, *, batch: int, dtype: torch.dtype) -> None:
        super().__init__(options, dtype)
        steps = len(lot.occupancy)
        self._support = self._part(lot, 0, steps * SUPPORT_END // 100)
        self._query = self._part(lot, steps * SUPPORT_END // 100, steps * TEST_START // 100)
        self._batch = batch
        self.label = lot.label
        self.samples = len(self._support[1]) + len(self._query[1])

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        return sample(self._support, self._batch, generator), sample(self._query, self._batch, generator)


class BlockwiseSource(Parking, SourceTask):
    """A lot that trains the linear model: as many blocks of `days` days as end its support part (all of it where that is shorter)."""

    def __init__(self, options: ParkingOptions, lot: Lot, *, dtype: torch.dtype) -> None:
        super().__init__(options, dtype)
        steps = len(lot.occupancy)
        end = steps * SUPPORT_END // 100
        block = min(options.days * STEPS_PER_DAY, end)
        blocks = [self._part(lot, start, start + block) for start in range(end % block, end, block)]
        inputs, targets = self._part(lot, end, steps * TEST_START // 100)
        self.meta_batch = len(blocks)
        self._support = torch.stack([block[0] for block in blocks]), torch.stack([block[1] for block in blocks])
        self._query = inputs.expand(len(blocks), *inputs.shape), targets.expand(len(blocks), *targets.shape)
        if self.meta_batch == 1:
            self._support, self._query = blocks[0], (inputs, targets)
        self.label = lot.label
        self.samples = sum(len(block[1]) for block in blocks) + len(targets)

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        """All blocks; nothing is left to chance."""
        return self._support, self._query


class ParkingTarget(Parking, TargetTask):
    """A lot that adapts on the `days` days before the test, which is the last 20 % of time."""

    def __init__(self, options: ParkingOptions, lot: Lot, *, batch: int, dtype: torch.dtype) -> None:
        super().__init__(options, dtype)
        steps = len(lot.occupancy)
        test = steps * TEST_START // 100
        start = test - options.days * STEPS_PER_DAY
        if start < 0:
            raise LearnerError(
                f"{lot.label} has {test / STEPS_PER_DAY:.1f} days before its test, learning.task.days asks for {options.days}: "
                "set it lower"
            )
        self._adaptation = self._part(lot, start, test)
        self._test = self._part(lot, test, steps)
        self._batch = batch
        self.label = lot.label
        self.samples = len(self._adaptation[1])

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        """A sample of the adaptation data; for the linear model, all of it."""
        return self._adaptation if self._options.model == "linear" else sample(self._adaptation, self._batch, generator)

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """The task's loss; `rmse_pp` and, on the same windows, `persistence_rmse_pp`."""
        inputs, targets = self._test
        with torch.no_grad():
            loss = float(self.loss(parameters, self._test))
            forecast = self.forecast(parameters, inputs)
        return loss, {"rmse_pp": _rmse_pp(forecast, targets), "persistence_rmse_pp": _rmse_pp(inputs[:, STEPS_IN - 1], targets)}


def parking_task(options: LearningOptions, task: ParkingOptions, *, role: Role, index: int) -> SourceTask | TargetTask:
    """The index-th lot of the role, or the lot that the options name. LearnerError where the data is not to be had."""
    if task.data == SYNTHETIC:
        lot = synthetic_lot(task, role=role, index=index)
    else:
        lot = read_lot(task.data, role=role, index=index, lot=task.lot)
    dtype: torch.dtype = getattr(torch, options.dtype)
    if role == "source" and task.model == "linear":
        return BlockwiseSource(task, lot, dtype=dtype)
    if role == "source":
        return ParkingSource(task, lot, batch=options.batch, dtype=dtype)
    return ParkingTarget(task, lot, batch=options.adapt_batch, dtype=dtype)


def _rmse_pp(forecast: Tensor, targets: Tensor) -> float:
    return 100 * float((forecast - targets).double().square().mean().sqrt())
