"""A task made of a torch.nn.Module, a loss and tensors: what one's own model and data need to be trained by any method here.

The module is called as a function of its parameters (`torch.func.functional_call`). It must be one: a buffer (running statistics, say)
would be neither learnt nor recovered and is refused, and chance in it (dropout) would not be replayed, which `fmrec-agent
check-learner` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fmrec_agent.learning.learner import LearnerError
from fmrec_agent.learning.task import Batch, Parameters, SourceTask, TargetTask, Task, sample

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

    def _initialised(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._model()

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._initialised(seed).named_parameters()}

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        inputs, targets = batch
        return self._loss(self._outputs(parameters, inputs), targets)

    def _outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(self._module, dict(parameters), (inputs,))
        return outputs


class ModuleSource(ModuleTask, SourceTask):
    """Trains: batches of `batch` rows are drawn from the support data and from the query data, (inputs [n, ...], targets [n, ...]) each."""

    def __init__(self, model: Callable[[], nn.Module], loss: Loss, support: Batch, query: Batch, *, batch: int) -> None:
        super().__init__(model, loss)
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
