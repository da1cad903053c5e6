"""Drawings bent at random, each by its own affine map: what another hand might have drawn.

With u_1 .. u_6 uniform in [-s, s], s the strength, a pixel at (x, y) shows what was at A (x, y) + b, in coordinates that go from -1 to 1
over the picture:

    A = R(u_1 15 degrees) diag(exp(0.15 u_2), exp(0.15 u_3)) [[1, 0.15 u_4], [0, 1]],   b = (u_5, u_6) 2 pixels

R turns. Between pixels the value is interpolated, and beyond the edge there is paper. The amounts were chosen by hand, on splits of the
characters other than the one whose figures are told.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

TURN, SCALE, SHEAR, SHIFT_PIXELS = math.radians(15), 0.15, 0.15, 2


def jittered(pictures: Tensor, strength: float, generator: np.random.Generator) -> Tensor:
    """Pictures [..., 1, side, side], each bent by its own draw; with strength 0 they stay what they are, but for rounding."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    draws = torch.tensor(generator.uniform(-strength, strength, (6, len(flat))), dtype=pictures.dtype)
    turn, shear = TURN * draws[0], SHEAR * draws[3]
    wide, high = torch.exp(SCALE * draws[1]), torch.exp(SCALE * draws[2])
    shift = draws[4:] * SHIFT_PIXELS * 2 / pictures.shape[-1]
    cos, sin = torch.cos(turn), torch.sin(turn)
    rows = (
        torch.stack([cos * wide, cos * wide * shear - sin * high, shift[0]], -1),
        torch.stack([sin * wide, sin * wide * shear + cos * high, shift[1]], -1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(flat.shape), align_corners=False)
    return functional.grid_sample(flat, grid, align_corners=False).reshape(pictures.shape)
