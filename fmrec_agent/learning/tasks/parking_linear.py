"""A linear forecast for a car park: the change over the next 35 minutes, from the last half hour and the time of day.

    forecast = x + F(d, x, t) w,    x: the last occupancy,  d_k = x - x[k], k = 0 .. 4: how it came there,  t: the time of day

F holds, in this order: 1, x, x^2; the five d_k; d_0 x and d_3 x; the harmonics sin and cos of 2 pi h t, h = 1 .. H; x times each of
these; and d_0 times those with h <= 2, since the same slope means another thing in the morning than in the evening. w = 0 is
persistence, so that is where it starts. Kinds of features were chosen by hand, by the error on source lots that were left out of the fit;
the targets' test errors stood beside it, so figures on those targets may be a little too good. How many harmonics, H = `task.harmonics`, is
compared on source lots alone by a command (`scripts/train_tasks.py parking-choice`; docs/tasks.md).

The loss, squared error, is quadratic in w: what method ridge wants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HARMONICS_OF_SLOPE = 2


def number_of_features(harmonics: int) -> int:
    """The length of w."""
    return 3 + 5 + 2 + 2 * (2 * harmonics) + 2 * min(harmonics, HARMONICS_OF_SLOPE)


def linear_forecast(weight: Tensor, inputs: Tensor, harmonics: int) -> Tensor:
    """Occupancy rates [n] for a weight [number_of_features(harmonics)] and inputs [n, 7]: six occupancies and the time of day at the last,
    in [0, 1)."""
    return inputs[:, 5] + _features(inputs, harmonics) @ weight


def _features(inputs: Tensor, harmonics: int) -> Tensor:
    """F [n, number_of_features(harmonics)]."""
    last, slopes = inputs[:, 5:6], inputs[:, 5:6] - inputs[:, :5]
    angle = 2 * math.pi * inputs[:, 6:7] * torch.arange(1, harmonics + 1, dtype=inputs.dtype, device=inputs.device)
    waves, slow = torch.cat([angle.sin(), angle.cos()], 1), angle[:, :HARMONICS_OF_SLOPE]
    steep = slopes[:, :1]
    parts = [
        torch.ones_like(last),
        last,
        last.square(),
        slopes,
        steep * last,
        slopes[:, 3:4] * last,
        waves,
        last * waves,
        steep * slow.sin(),
        steep * slow.cos(),
    ]
    return torch.cat(parts, 1)
