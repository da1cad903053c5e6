"""SYNTHETIC car parks: made by a seeded generator, measured nowhere. For tests, and for trying FMRec where there is no data.

A lot's occupancy is  base + height x profile(type, hour, weekday or weekend) x that day's factor + persistent noise,  clipped
to [0, 1], times the capacity, rounded to whole vehicles; 30 days of 5-minute steps from a Friday, like the published data.

1. A profile is a sum of plateaus over the hours of the day: offices fill at nine and empty at six, homes the other way round, ...
2. The noise is an AR(1) process of a few hours' memory: persistence over 35 minutes is hard to beat by night and easy at the
   slopes.
3. Sources and targets are two cities: the targets' hours are later, their slopes steeper, their noise stronger.
4. Each lot has its own stream, (data seed, lot's name): one lot is made without the others. Rounding to whole vehicles hides
   the last bits in which one machine's exp() may differ from another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fmrec_agent.learning.learner import Role
from fmrec_agent.learning.options import ParkingOptions
from fmrec_agent.learning.streams import stream
from fmrec_agent.learning.tasks.parking_data import STEPS_PER_DAY, Entry, Lot, named, pick

LABEL = "synthetic parking (seeded generator)"
DAYS = 30
FIRST_WEEKDAY = 4  # Friday, counted from Monday = 0
STEPS_PER_HOUR = STEPS_PER_DAY // 24


@dataclass(frozen=True, slots=True)
class Plateau:
    """High from `start` to `end`, hours of the day; `end` may pass midnight.

    weekday, weekend: how high. slope_h: hours that it takes from an eighth to seven eighths of the way up.
    """

    start: float
    end: float
    weekday: float
    weekend: float
    slope_h: float


@dataclass(frozen=True, slots=True)
class City:
    """Ranges (low, high) from which a lot of this city is drawn: uniform, but for the capacity, whose logarithm is."""

    delay_h: tuple[float, float]
    slope: tuple[float, float]
    base: tuple[float, float]
    height: tuple[float, float]
    noise: tuple[float, float]
    capacity: tuple[float, float] = (60.0, 1200.0)


PROFILES: dict[str, tuple[Plateau, ...]] = {
    "commercial": (Plateau(10.5, 21.5, 0.7, 1.0, 2.2), Plateau(17.5, 20.5, 0.3, 0.2, 1.8)),
    "hospital": (Plateau(7.8, 11.7, 1.0, 0.6, 2.3), Plateau(14.0, 17.2, 0.8, 0.4, 2.3)),
    "office": (Plateau(8.7, 18.4, 1.0, 0.2, 2.0),),
    "residential": (Plateau(18.3, 31.8, 1.0, 1.0, 2.4), Plateau(8.0, 18.0, 0.3, 0.7, 2.4)),
    "sport": (Plateau(18.5, 21.5, 1.0, 0.7, 1.8), Plateau(9.0, 17.5, 0.3, 1.0, 2.2)),
    "tourism": (Plateau(9.5, 17.0, 0.5, 1.0, 2.2),),
}
CITIES: dict[Role, City] = {
    "source": City(delay_h=(-0.5, 0.5), slope=(0.8, 1.4), base=(0.10, 0.25), height=(0.45, 0.65), noise=(0.008, 0.016)),
    "target": City(delay_h=(0.2, 1.2), slope=(0.6, 1.1), base=(0.05, 0.30), height=(0.40, 0.70), noise=(0.008, 0.020)),
}
NOISE_MEMORY_H = (2.0, 4.0)
DAY_FACTOR_SPREAD = 0.05


def synthetic_lot(options: ParkingOptions, *, role: Role, index: int) -> Lot:
    """The lot named in the options, or the `index`-th (from 0) of the role, six types in turn. LearnerError if there is none."""
    where = f"the synthetic data (learning.task.sources = {options.sources}, learning.task.targets = {options.targets})"
    sources, targets = _entries(options, "source", options.sources), _entries(options, "target", options.targets)
    if options.lot is None:
        entry = pick(sources if role == "source" else targets, role=role, index=index, where=where)
    else:
        entry = named(sources + targets, options.lot, where=where)
    return Lot(entry.name, f"{LABEL}, lot {entry.name}", entry.capacity, _counts(options.data_seed, entry) / entry.capacity)


def _entries(options: ParkingOptions, role: Role, number: int) -> list[Entry]:
    kinds, entries, range_log = list(PROFILES), [], np.log(CITIES[role].capacity)
    for index in range(number):
        kind = kinds[index % len(kinds)]
        name = f"{role}-{kind}-{index // len(kinds) + 1}"
        capacity = np.exp(stream("synthetic capacity", options.data_seed, name).uniform(*range_log))
        entries.append(Entry(name, role, kind, float(round(capacity))))
    return entries


def _counts(data_seed: int, lot: Entry) -> npt.NDArray[np.float64]:
    """Parked vehicles at each step: whole numbers from 0 to the capacity."""
    generator, city = stream("synthetic parking", data_seed, lot.name), CITIES[lot.role]
    delay_h, slope, base, height, noise = (
        generator.uniform(low, high) for low, high in (city.delay_h, city.slope, city.base, city.height, city.noise)
    )
    shape = _profile(lot.kind, delay_h, slope)
    factors = 1 + DAY_FACTOR_SPREAD * generator.standard_normal(DAYS)
    keep = np.exp(-1 / (generator.uniform(*NOISE_MEMORY_H) * STEPS_PER_HOUR))
    rate = base + height * shape * np.repeat(factors, STEPS_PER_DAY) + _persistent(generator, noise / 2, keep)
    return np.rint(lot.capacity * rate.clip(0, 1))


def _profile(kind: str, delay_h: float, slope: float) -> npt.NDArray[np.float64]:
    hour = np.arange(DAYS * STEPS_PER_DAY) / STEPS_PER_HOUR
    weekend = (np.arange(-1, DAYS + 1) + FIRST_WEEKDAY) % 7 >= 5
    total = np.zeros_like(hour)
    for plateau in PROFILES[kind]:
        heights = np.where(weekend, plateau.weekend, plateau.weekday)
        # From the day before the first, whose plateau may reach past midnight.
        for day, level in enumerate(heights, start=-1):
            width_h = plateau.slope_h * slope / 2
            since, until = hour - (24 * day + plateau.start + delay_h), 24 * day + plateau.end + delay_h - hour
            total += level * _rise(since / width_h) * _rise(until / width_h)
    return total


def _rise(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return (1 + np.tanh(x)) / 2


def _persistent(generator: np.random.Generator, innovation: float, keep: float) -> npt.NDArray[np.float64]:
    """AR(1), started in its stationary law."""
    shocks = (innovation * generator.standard_normal(DAYS * STEPS_PER_DAY)).tolist()
    level, levels = shocks[0] / float(np.sqrt(1 - keep**2)), []
    for shock in shocks:
        levels.append(level)
        level = keep * level + shock
    return np.array(levels)
