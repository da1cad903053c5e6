"""What tasks of classification share: cross-entropy as the loss, and the accuracy beside it.

A batch is (inputs [n, ...], classes [n], int64, from 0); the model yields logits [n, ways]. The loss is the mean of
-log softmax(logits)[class], the metric `accuracy_percent` the share of inputs whose largest logit is their class's.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from fmrec_agent.learning.task import Batch, Parameters, Task


class Classification(Task):
    """The loss and the measuring; a task adds its model and its data."""

    @abstractmethod
    def logits(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """[n, ways] for inputs [n, ...]; pure, and reads no names but its own."""

    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        inputs, classes = batch
        return functional.cross_entropy(self.logits(parameters, inputs), classes)

    def measured(self, parameters: Parameters, batch: Batch) -> tuple[float, dict[str, float]]:
        """Loss and `accuracy_percent` on the whole batch at once."""
        inputs, classes = batch
        with torch.no_grad():
            logits = self.logits(parameters, inputs)
        right = (logits.argmax(1) == classes).double().mean()
        return float(functional.cross_entropy(logits, classes)), {"accuracy_percent": 100 * float(right)}
