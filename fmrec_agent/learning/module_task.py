"""A task made of a torch.nn.Module, a loss and tensors: what one's own model and data need to be trained by any method here.

The module is called as a function of its parameters (`torch.func.functional_call`). It must be one: a buffer (running statistics, say)
would be neither learnt nor recovered and is refused, and chance in it (dropout) would not be replayed, which `fmrec-agent
check-learner` finds out. A parameter without requires_grad is a constant: neither learnt nor sent, and made as by seed 0 in every agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task, sample

ROWS_TRIED = 16
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, ...], targets [n, ...]) -> their mean loss, as in torch.nn.functional."""
Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]
"""(outputs, targets) of the whole test data -> figures by name."""


class ModuleTask(Task):
    """The model and its loss; `ModuleSource` and `ModuleTarget` add the data."""

    def __init__(self, model: Callable[[], nn.Module], loss: Loss) -> None:
        """model: makes a new module, initialised from torch's global generator as modules are. LearnerError where it has a buffer."""
        self._model = model
        self._loss = loss
        self._module = self._initialised(0)
        self.label = f"a {type(self._module).__name__}"
        for name, _ in self._module.named_buffers():
            raise LearnerError(
                f"the model has the buffer {name}, which would be neither learnt nor recovered: "
                "make it a constant or a parameter (a norm layer: track_running_stats=False)"
            )
        self._constants = {name: value for name, value in self._module.named_parameters() if not value.requires_grad}

    def _initialised(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._model()

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        named = self._initialised(seed).named_parameters()
        return {name: value.detach().clone() for name, value in named if value.requires_grad}

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self._loss(self._outputs(parameters, inputs), targets)

    def _outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        constants = {name: value.to(inputs.device) for name, value in self._constants.items()}
        outputs: Tensor = torch.func.functional_call(self._module, {**constants, **parameters}, (inputs,))
        return outputs

    def _checked(self, **data: Batch) -> None:
        """LearnerError where data have no rows, inputs and targets are not of one length, or the loss leaves a parameter out.

        data: by what they are called; the loss is taken on the first ROWS_TRIED rows of the first of them.
        """
        for name, (inputs, targets) in data.items():
            if not len(inputs) == len(targets) > 0:
                raise LearnerError(
                    f"the {name} data have {len(inputs)} rows of inputs and {len(targets)} of targets: "
                    "give at least one, and as many of one as of the other"
                )
        inputs, targets = next(iter(data.values()))
        parameters = {name: value.requires_grad_() for name, value in self.initial_parameters(0).items()}
        loss = self.loss(parameters, (inputs[:ROWS_TRIED], targets[:ROWS_TRIED]))
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True):
            if gradient is None:
                raise LearnerError(
                    f"the loss does not depend on the model's parameter {name}: take it out, or make it a constant (requires_grad=False)"
                )


class ModuleSource(ModuleTask, SourceTask):
    """Trains: batches of `batch` rows are drawn from the support data and from the query data, (inputs [n, ...], targets [n, ...]) each."""

    def __init__(self, model: Callable[[], nn.Module], loss: Loss, support: Batch, query: Batch, *, batch: int) -> None:
        super().__init__(model, loss)
        self._checked(support=support, query=query)
        self._support, self._query, self._batch = support, query, batch
        self.samples = len(support[1]) + len(query[1])

    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        return sample(self._support, self._batch, generator), sample(self._query, self._batch, generator)


class ModuleTarget(ModuleTask, TargetTask):
    """Adapts on batches of `batch` rows of the adaptation data, and is measured on the test data: the loss, and `metrics` where given."""

    def __init__(
        self, model: Callable[[], nn.Module], loss: Loss, adaptation: Batch, test: Batch, *, batch: int, metrics: Metrics | None = None
    ) -> None:
        super().__init__(model, loss)
        self._checked(adaptation=adaptation, test=test)
        self._adaptation, self._test, self._batch, self._metrics = adaptation, test, batch, metrics
        self.samples = len(adaptation[1])

    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        return sample(self._adaptation, self._batch, generator)

    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """The loss on the whole test data, and the metrics."""
        inputs, targets = self._test
        with torch.no_grad():
            outputs = self._outputs(parameters, inputs)
            figures = dict(self._metrics(outputs, targets)) if self._metrics is not None else {}
            return float(self._loss(outputs, targets)), figures
