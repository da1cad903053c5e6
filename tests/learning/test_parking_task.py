"""The parking task: windows and splits counted by hand, the LSTM against torch's, the metrics (DESIGN 10)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from fmrec_agent.learning.learner import Job, LearnerError
from fmrec_agent.learning.loading import load_learner
from fmrec_agent.learning.options import LearningOptions, ParkingOptions
from fmrec_agent.learning.tasks.parking import ParkingSource, ParkingTarget, lstm_forecast, windows
from fmrec_agent.learning.tasks.parking_data import Lot

DAY = 288


def clock(days: int) -> Lot:
    """A lot whose occupancy is the number of its step, so that a window tells where it comes from."""
    steps = np.arange(days * DAY, dtype=np.float64)
    return Lot("clock", "a clock", 1.0, steps)


class EveryRow(np.random.Generator):
    """Draws every row once, in order, however many were asked for."""

    def integers(self, low: int, high: int, size: int) -> np.ndarray:  # type: ignore[override]
        return np.arange(low, high)


def every_row() -> EveryRow:
    return EveryRow(np.random.PCG64(0))


def test_a_window_is_half_an_hour_and_its_target_35_minutes_later() -> None:
    inputs, targets = windows(np.arange(100, dtype=np.float64), 10, 25, torch.float32)
    assert inputs.tolist() == [[10, 11, 12, 13, 14, 15], [11, 12, 13, 14, 15, 16], [12, 13, 14, 15, 16, 17]]
    assert targets.tolist() == [22, 23, 24]


def test_a_source_splits_time_at_60_and_80_per_cent() -> None:
    """30 days are 8640 steps: support 0 to 5183, query 5184 to 6911, 12 windows fewer than steps in each."""
    source = ParkingSource(ParkingOptions(), clock(30), batch=1, dtype=torch.float64)
    support, query = source.draw(every_row())
    for (inputs, targets), start, end in ((support, 0, 5184), (query, 5184, 6912)):
        assert inputs.shape == (end - start - 12, 6)
        assert inputs[[0, -1], 0].tolist() == [start, end - 13]
        assert targets[[0, -1]].tolist() == [start + 12, end - 1]
    assert source.samples == 5172 + 1716


@pytest.mark.parametrize(("days", "first"), [(1, 6624), (3, 6048), (6, 5184), (24, 0)])
def test_a_target_adapts_on_the_days_right_before_its_test(days: Literal[1, 3, 6, 24], first: int) -> None:
    """The test is steps 6912 to 8639. Nothing of it, nor of any window that reaches into it, is in the adaptation data."""
    target = ParkingTarget(ParkingOptions(days=days), clock(30), batch=1, dtype=torch.float64)
    inputs, targets = target.draw_adaptation(every_row())
    assert (inputs.min().item(), targets.max().item()) == (first, 6911)
    assert len(targets) == target.samples == days * DAY - 12


def test_the_test_is_the_last_fifth_whatever_the_days() -> None:
    """On a clock persistence is wrong by 7 steps everywhere, and the mean of the squares tells which targets were tested."""
    for days in (1, 24):
        target = ParkingTarget(ParkingOptions(days=days), clock(30), batch=1, dtype=torch.float64)
        silent = {key: torch.zeros_like(value) for key, value in target.initial_parameters(0).items()}
        loss, metrics = target.evaluate(silent)
        assert loss == pytest.approx(np.mean(np.arange(6912 + 12, 8640) ** 2.0))
        assert metrics == pytest.approx({"rmse_pp": 100 * loss**0.5, "persistence_rmse_pp": 700.0})


def test_too_little_data_is_said() -> None:
    with pytest.raises(LearnerError, match=r"a clock has 4\.0 days before its test, learning.task.days asks for 6: set it lower"):
        ParkingTarget(ParkingOptions(days=6), clock(5), batch=1, dtype=torch.float32)
    with pytest.raises(LearnerError, match=r"too few rows \(60\)"):
        ParkingSource(ParkingOptions(), Lot("short", "short", 1.0, np.zeros(60)), batch=1, dtype=torch.float32)


@pytest.mark.parametrize("hidden", [1, 4, 9])
def test_the_lstm_is_torchs(hidden: int) -> None:
    parameters = ParkingSource(ParkingOptions(hidden=hidden), clock(2), batch=1, dtype=torch.float64).initial_parameters(5)
    lstm, decoder = torch.nn.LSTM(1, hidden, dtype=torch.float64), torch.nn.Linear(hidden, 1, dtype=torch.float64)
    lstm.load_state_dict({f"{key.removeprefix('lstm.')}_l0": v for key, v in parameters.items() if key.startswith("lstm.")})
    decoder.load_state_dict({key.removeprefix("decoder."): v for key, v in parameters.items() if key.startswith("decoder.")})
    inputs = torch.rand(20, 6, dtype=torch.float64)
    outputs, _ = lstm(inputs.T.unsqueeze(-1))
    torch.testing.assert_close(lstm_forecast(parameters, inputs), decoder(outputs[-1]).squeeze(-1))


def test_the_published_network_decodes_all_six_states_and_has_23_parameters() -> None:
    task = ParkingSource(ParkingOptions(hidden=1, decoder="all"), clock(2), batch=1, dtype=torch.float64)
    parameters = task.initial_parameters(5)
    assert sum(value.numel() for value in parameters.values()) == 23
    lstm, decoder = torch.nn.LSTM(1, 1, dtype=torch.float64), torch.nn.Linear(6, 1, dtype=torch.float64)
    lstm.load_state_dict({f"{key.removeprefix('lstm.')}_l0": v for key, v in parameters.items() if key.startswith("lstm.")})
    decoder.load_state_dict({key.removeprefix("decoder."): v for key, v in parameters.items() if key.startswith("decoder.")})
    inputs = torch.rand(20, 6, dtype=torch.float64)
    outputs, _ = lstm(inputs.T.unsqueeze(-1))
    torch.testing.assert_close(task.forecast(parameters, inputs), decoder(outputs[..., 0].T).squeeze(-1))


def test_cross_entropy_forecasts_a_rate_and_bears_rates_above_one() -> None:
    target = ParkingTarget(ParkingOptions(loss="bce"), clock(30), batch=1, dtype=torch.float64)
    parameters = target.initial_parameters(0)
    inputs = torch.rand(50, 6, dtype=torch.float64)
    rates = target.forecast(parameters, inputs)
    assert ((rates > 0) & (rates < 1)).all()
    targets = torch.linspace(0, 1, 50, dtype=torch.float64)
    by_hand = -(targets * rates.log() + (1 - targets) * (1 - rates).log()).mean()
    torch.testing.assert_close(target.loss(parameters, (inputs, targets)), by_hand)
    over = target.loss(parameters, (inputs, torch.full_like(targets, 1.2)))
    torch.testing.assert_close(over, target.loss(parameters, (inputs, torch.ones_like(targets))))


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_a_short_training_brings_a_target_near_persistence(loss: str) -> None:
    """Three lots, 15 rounds, plain averaging: the meta-trained start is better than the random one, and adapts to a useful forecast."""
    options = LearningOptions.model_validate({"adapt_iterations": 100, "task": {"loss": loss}})
    sources = [load_learner(options, name=f"s{i}", role="source", index=i) for i in range(3)]
    theta = dict(sources[0].initial_parameters(0))
    steps: dict[str, list[np.ndarray]] = {key: [np.zeros_like(v), np.zeros_like(v)] for key, v in theta.items()}
    random_start = _adapted(options, theta)
    for round_ in range(15):
        for source in sources:
            for _ in range(source.begin(Job("train", round_, 0), theta)):
                source.step()
        contributions = [source.finish() for source in sources]
        for key, (first, second) in steps.items():
            mean = np.mean([c.tensors[key] for c in contributions], axis=0)
            first += 0.1 * (mean - first)
            second += 0.01 * (mean**2 - second)
            scale = np.sqrt(second / (1 - 0.99 ** (round_ + 1))) + 1e-8
            theta[key] = theta[key] - np.float32(0.05) * first / (1 - 0.9 ** (round_ + 1)) / scale
    trained = _adapted(options, theta)
    assert trained["rmse_pp"] < random_start["rmse_pp"]
    assert trained["rmse_pp"] < 2 * trained["persistence_rmse_pp"]


def _adapted(options: LearningOptions, theta: dict[str, np.ndarray]) -> dict[str, float]:
    target = load_learner(options, name="t", role="target", index=0)
    for _ in range(target.begin(Job("adapt", 0, 0), theta)):
        target.step()
    return dict(target.finish().metrics)
