"""What a learning method needs to know of a task: a pure model, a loss, and batches drawn from local data.

A model is a function of its parameters, which are a dict of tensors by name in one fixed order. Nothing in a task changes after
`__init__`: whoever draws passes the generator, so a learner's state holds all the randomness and a restored learner draws the
same batches. A method (methods/) reads nothing but these three classes, and a task knows no method. A batch is on the CPU; a loss
gets it on the learner's device, where its parameters are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]


def sample(part: Batch, number: int, generator: np.random.Generator) -> Batch:
    """`number` rows of the data (inputs [n, ...], targets [n, ...]), with replacement: a draw's cost doesn't depend on their amount."""
    rows = torch.tensor(generator.integers(0, len(part[1]), number))
    return part[0][rows], part[1][rows]


class Task(ABC):
    """A model and its loss on one agent's data.

    label: what the data is, for people ("parking data in <folder>, lot cme1").
    samples: |D_i|, the number of local samples that train or adapt.
    """

    label: str
    samples: int

    @abstractmethod
    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """theta_0 from the seed alone; names, shapes, dtypes and order are the model's layout."""

    @abstractmethod
    def loss(self, parameters: Parameters, batch: Batch) -> Tensor:
        """Mean loss of a batch (inputs [n, ...], targets [n, ...]) as a scalar, twice differentiable in `parameters`.

        Pure, and free of data-dependent branches: a method may `vmap` it over tasks.
        """


class SourceTask(Task):
    """A task that trains.

    meta_batch: how many tasks one draw holds. Above 1, every tensor of a drawn batch has a leading axis of that size.
    """

    meta_batch: int = 1

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> tuple[Batch, Batch]:
        """A support batch and a query batch; all chance comes from `generator`."""


class TargetTask(Task):
    """A task that adapts and is measured.

    milestones: after these iterations of an adaptation its metrics are taken too, as `<metric>_after_<iterations>`.
    """

    milestones: tuple[int, ...] = ()

    @abstractmethod
    def draw_adaptation(self, generator: np.random.Generator) -> Batch:
        """A batch of the adaptation data, which never overlaps the test data."""

    @abstractmethod
    def evaluate(self, parameters: Parameters) -> tuple[float, dict[str, float]]:
        """Loss and metrics on the whole test data."""
