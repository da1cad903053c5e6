"""The synthetic car parks: the same bytes everywhere, plausible lots, and six types that differ."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fmrec_agent.learning.learner import LearnerError, Role
from fmrec_agent.learning.options import ParkingOptions
from fmrec_agent.learning.tasks.synthetic_parking import PROFILES, synthetic_lot

ROOT = Path(__file__).resolve().parents[2]
ROLES: tuple[Role, ...] = ("source", "target")
OPTIONS = ParkingOptions()


def occupancy(role: Role, index: int, options: ParkingOptions = OPTIONS) -> npt.NDArray[np.float64]:
    return synthetic_lot(options, role=role, index=index).occupancy


def test_lots_are_plausible() -> None:
    for role in ROLES:
        for index in range(12):
            lot = synthetic_lot(OPTIONS, role=role, index=index)
            assert len(lot.occupancy) == 30 * 288
            assert 0 <= lot.occupancy.min() < lot.occupancy.max() <= 1
            counts = lot.occupancy * lot.capacity
            np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
            assert 60 <= lot.capacity <= 1200
            assert lot.label == f"synthetic parking (seeded generator), lot {lot.name}"
            persistence_pp = 100 * np.sqrt(np.mean((lot.occupancy[7:] - lot.occupancy[:-7]) ** 2))
            assert 1.5 < persistence_pp < 10


def test_lots_differ_by_index_role_and_seed() -> None:
    lots = [occupancy(role, index) for role in ROLES for index in (0, 6)] + [occupancy("source", 0, ParkingOptions(data_seed=1))]
    for one, other in combinations(lots, 2):
        assert np.abs(one - other).mean() > 0.005


def test_types_differ() -> None:
    """Mean days of two types are further apart than those of two lots of one type."""
    kinds = len(PROFILES)
    days = [[occupancy("source", turn * kinds + kind).reshape(30, 288).mean(0) for turn in range(2)] for kind in range(kinds)]
    same = [1 - np.corrcoef(*pair)[0, 1] for pair in days]
    other = [1 - np.corrcoef(days[i][0], days[j][0])[0, 1] for i, j in combinations(range(kinds), 2)]
    assert np.mean(other) > 5 * np.mean(same)


def test_weekends_differ_from_weekdays_where_they_should() -> None:
    """The first day is a Friday, so the second and third are a weekend."""
    office = occupancy("source", 2).reshape(30, 288)
    assert "office" in synthetic_lot(OPTIONS, role="source", index=2).name
    assert office[[1, 2, 8, 9], 144:192].mean() < office[[0, 3, 4, 5], 144:192].mean() - 0.2


def test_a_lot_is_found_by_name_and_does_not_depend_on_how_many_there_are() -> None:
    wanted = synthetic_lot(OPTIONS, role="target", index=1)
    few = ParkingOptions(sources=1, targets=2, lot=wanted.name)
    assert synthetic_lot(few, role="target", index=7).occupancy.tobytes() == wanted.occupancy.tobytes()
    with pytest.raises(LearnerError, match=r"no source lot number 30: .*\(learning.task.sources = 30, learning.task.targets = 12\) has 30"):
        occupancy("source", 30)
    with pytest.raises(LearnerError, match=r"no lot 'cme1' in the synthetic data .*: set learning.task.lot to one of source-commercial-1"):
        occupancy("source", 0, ParkingOptions(lot="cme1"))


CHILD = """
import hashlib
from fmrec_agent.learning.options import ParkingOptions
from fmrec_agent.learning.tasks.synthetic_parking import synthetic_lot
print(hashlib.sha256(synthetic_lot(ParkingOptions(data_seed=5), role="target", index=4).occupancy.tobytes()).hexdigest())
"""


def test_another_process_makes_the_same_bytes() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "99"}
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    here = occupancy("target", 4, ParkingOptions(data_seed=5))
    assert done.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()
