"""A linear forecast for a car park: the change over the next 35 minutes, from the last half hour and the time of day.

    forecast = x + F(d, x, t) w,    x: the last occupancy,  d_k = x - x[k], k = 0 .. 4: how it came there,  t: the time of day

F holds, in this order: 1, x, the five d_k, and the harmonics sin and cos of 2 pi h t, h = 1 .. H; and with `task.products` these
products: x times x, each d_k and each harmonic, and d_0 times the harmonics with h <= 2, since the same slope means another thing in the
morning than in the evening. w = 0 is persistence, so that is where it starts. Products or not, and how many harmonics, H =
`task.harmonics`, was chosen by the error on source lots that the fit had not seen (`scripts/train_tasks.py parking-choice`; docs/tasks.md).

The loss, squared error, is quadratic in w: what method ridge wants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SLOPES = 5
"""The d_k."""
HARMONICS_OF_SLOPE = 2


def number_of_features(harmonics: int, *, products: bool) -> int:
    """The length of w."""
    plain = 2 + SLOPES + 2 * harmonics
    return plain + (1 + SLOPES + 2 * harmonics + 2 * min(harmonics, HARMONICS_OF_SLOPE) if products else 0)


def linear_forecast(weight: Tensor, inputs: Tensor, harmonics: int, *, products: bool) -> Tensor:
    """Occupancy rates [n] for a weight [number_of_features(...)] and inputs [n, 7]: six occupancies and the time of day at the last, in
    [0, 1)."""
    return inputs[:, 5] + _features(inputs, harmonics, products) @ weight


def _features(inputs: Tensor, harmonics: int, products: bool) -> Tensor:
    """F [n, number_of_features(...)]."""
    last, slopes = inputs[:, 5:6], inputs[:, 5:6] - inputs[:, :5]
    angle = 2 * math.pi * inputs[:, 6:7] * torch.arange(1, harmonics + 1, dtype=inputs.dtype, device=inputs.device)
    waves, slow = torch.cat([angle.sin(), angle.cos()], 1), angle[:, :HARMONICS_OF_SLOPE]
    parts = [torch.ones_like(last), last, slopes, waves]
    if products:
        steep = slopes[:, :1]
        parts += [last.square(), last * slopes, last * waves, steep * slow.sin(), steep * slow.cos()]
    return torch.cat(parts, 1)
