"""Aggregation: promise P5 (no order of arrival shows), the means by hand, the steps against torch.optim, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fmrec_manager.aggregation import AggregationError, Aggregator, Optimizer, Weighting
from fmrec_manager.aggregation_rule import AggregationRule
from protocol.identifiers import NodeId, agent_id

Tensors = dict[str, np.ndarray[Any, Any]]
AGENTS = [agent_id("fmrec", f"agent-{index}") for index in range(12)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: the same bits on CPU and CUDA stay unchecked")


def aggregator(
    optimizer: Optimizer = "sgd", *, rate: float = 1.0, weighting: Weighting = "samples", device: Any = "cpu", **rule: Any
) -> Aggregator:
    return Aggregator(device, optimizer, rate, 0.9, weighting, AggregationRule(**rule))


def tensors(generator: np.random.Generator) -> Tensors:
    return {
        "lstm.weight": generator.normal(size=(16, 7)).astype(np.float32),
        "head.bias": generator.normal(size=3).astype(np.float32),
        "scale": np.array(generator.normal(), dtype=np.float32),
    }


def round_of(seed: int) -> dict[NodeId, tuple[Tensors, int, float]]:
    generator = np.random.default_rng(seed)
    return {agent: (tensors(generator), int(generator.integers(1, 5000)), float(generator.choice([1.0, 0.5]))) for agent in AGENTS}


def test_the_order_of_arrival_leaves_no_bit_behind() -> None:
    """P5: thirty orders of arrival, three rounds each, one theta."""
    results = set()
    for order in range(30):
        subject, theta = aggregator("adam", rate=0.02), tensors(np.random.default_rng(0))
        for number in range(3):
            arrived = list(round_of(number).items())
            random.Random(order).shuffle(arrived)
            theta, weights = subject.aggregate(theta, dict(arrived))
            assert list(weights) == sorted(AGENTS)
        results.add(b"".join(theta[name].tobytes() for name in sorted(theta)))
    assert len(results) == 1


@pytest.mark.parametrize(
    ("weighting", "omegas", "expected"),
    [("samples", [0.25, 0.75], [9.5, 6.0]), ("uniform", [2 / 3, 1 / 3], [10.0, 8.0 + 2 / 3])],
)
def test_the_mean_by_hand(weighting: Weighting, omegas: list[float], expected: list[float]) -> None:
    """|D| = 10 and 60 with factors 1 and 1/2: omega = 10/40 and 30/40, or by factor alone 2/3 and 1/3."""
    one, two = NodeId(1), NodeId(2)
    gradients = {one: np.array([-1.0, 2.0], dtype=np.float32), two: np.array([1.0, 6.0], dtype=np.float32)}
    theta = {"w": np.array([10.0, 11.0] if weighting == "samples" else [9.0 + 2 / 3, 12.0], dtype=np.float32)}
    contributions = {two: ({"w": gradients[two]}, 60, 0.5), one: ({"w": gradients[one]}, 10, 1.0)}
    stepped, weights = aggregator(weighting=weighting).aggregate(theta, contributions)
    assert weights == pytest.approx(dict(zip([one, two], omegas, strict=True)))
    assert stepped["w"].dtype == np.float32
    np.testing.assert_allclose(stepped["w"], expected, rtol=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "peer"),
    [
        ("sgd", lambda parameter: torch.optim.SGD([parameter], lr=0.02)),
        ("momentum", lambda parameter: torch.optim.SGD([parameter], lr=0.02, momentum=0.9)),
        ("adam", lambda parameter: torch.optim.Adam([parameter], lr=0.02)),
    ],
)
def test_the_steps_are_those_of_torch(optimizer: Optimizer, peer: Callable[[torch.Tensor], torch.optim.Optimizer]) -> None:
    """Twenty steps on float64, so that only the order of roundings can differ: a few times 1e-16 a step."""
    generator = np.random.default_rng(5)
    theta: Tensors = {"w": generator.normal(size=50)}
    parameter = torch.tensor(theta["w"], requires_grad=True)
    reference, subject = peer(parameter), aggregator(optimizer, rate=0.02)
    for _ in range(20):
        gradient = generator.normal(size=50)
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        theta, _ = subject.aggregate(theta, {AGENTS[0]: ({"w": gradient}, 1, 1.0)})
    np.testing.assert_allclose(theta["w"], parameter.detach().numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi"])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(optimizer: Optimizer) -> None:
    """P6: the state travels as arrays and the next theta is the same to the bit."""
    undisturbed, theta = aggregator(optimizer), tensors(np.random.default_rng(1))
    fresh = undisturbed.state()
    for number in range(3):
        theta, _ = undisturbed.aggregate(theta, round_of(number))
    restarted = aggregator(optimizer)
    restarted.restore(fresh)
    restarted.restore(undisturbed.state())
    expected, _ = undisturbed.aggregate(theta, round_of(3))
    actual, _ = restarted.aggregate(theta, round_of(3))
    assert {name: value.tobytes() for name, value in actual.items()} == {name: value.tobytes() for name, value in expected.items()}


def test_yogi_is_that_of_reddi() -> None:
    """Algorithm 2 of "Adaptive federated optimization", by hand for one coordinate."""
    subject, theta, m, v = aggregator("yogi", rate=0.1), {"w": np.array([1.0])}, 0.0, 1e-6
    x = 1.0
    for gradient in (2.0, -1.0, 0.5, 0.001):
        theta, _ = subject.aggregate(theta, {AGENTS[0]: ({"w": np.array([gradient])}, 1, 1.0)})
        m = 0.9 * m + 0.1 * gradient
        v -= 0.01 * gradient**2 * (1 if v > gradient**2 else -1)
        x -= 0.1 * m / (v**0.5 + 1e-3)
        assert theta["w"][0] == pytest.approx(x, rel=1e-12)


ROBUST: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "trimmed_mean", "trim": 0.25},
    {"name": "krum", "byzantine": 3},
    {"name": "krum", "byzantine": 3, "krum_selected": 5},
]


@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_three_liars_of_twelve_move_a_robust_aggregate_no_further_than_the_honest_go(rule: dict[str, Any]) -> None:
    """Each coordinate stays within the honest agents' values, though the liars claim a million samples; the weighted mean leaves them."""
    honest = round_of(8)
    liars = AGENTS[:3]
    given = dict(honest)
    for liar in liars:
        given[liar] = ({name: value * np.float32(-1e6) for name, value in honest[liar][0].items()}, 10**6, 1.0)
    theta = {name: np.zeros_like(value) for name, value in honest[AGENTS[0]][0].items()}
    for chosen, stays in ((rule, True), ({}, False)):
        stepped, omega = aggregator(**chosen).aggregate(theta, given)
        inside = [
            (low <= -stepped[name]).all() and (-stepped[name] <= high).all()
            for name in theta
            for values in [[honest[agent][0][name] for agent in AGENTS if agent not in liars]]
            for low, high in [(np.min(values, axis=0), np.max(values, axis=0))]
        ]
        assert all(inside) == stays
        assert list(omega) == sorted(AGENTS)
        assert sum(omega.values()) == pytest.approx(1)
    if rule["name"] == "krum":
        assert not any(aggregator(**rule).aggregate(theta, given)[1][liar] for liar in liars)


@pytest.mark.parametrize("rule", ROBUST, ids=str)
def test_no_order_of_arrival_and_no_restart_shows_in_a_robust_aggregate(rule: dict[str, Any]) -> None:
    """P5 and P6: eight orders of arrival, each before and after a restart, one theta."""
    results = set()
    theta = tensors(np.random.default_rng(0))
    for order in range(8):
        arrived = list(round_of(0).items())
        random.Random(order).shuffle(arrived)
        before, after = aggregator("yogi", rate=0.02, **rule), aggregator("yogi", rate=0.02, **rule)
        between, _ = before.aggregate(theta, dict(arrived))
        after.restore(before.state())
        for subject in (before, after):
            last, _ = subject.aggregate(between, dict(reversed(arrived)))
            results.add(b"".join(last[name].tobytes() for name in sorted(last)))
    assert len(results) == 1


def test_too_few_for_krum_are_refused_in_a_sentence() -> None:
    few = dict(list(round_of(1).items())[:6])
    with pytest.raises(AggregationError, match="krum with byzantine = 2 and krum_selected = 1 needs 7 contributions, and there are 6"):
        aggregator(name="krum", byzantine=2).aggregate(tensors(np.random.default_rng(0)), few)


def spoilt(spoil: Callable[[Tensors], None]) -> dict[NodeId, tuple[Tensors, int, float]]:
    contributions = round_of(7)
    spoil(contributions[AGENTS[4]][0])
    return contributions


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda given: given["head.bias"].__setitem__(1, np.nan), "head.bias .* not finite"),
        (lambda given: given["lstm.weight"].__setitem__((0, 0), -np.inf), "lstm.weight .* not finite"),
        (lambda given: given.pop("scale"), "scale .* is missing"),
        (lambda given: given.update(extra=np.zeros(1, np.float32)), "extra .* is not in theta"),
        (lambda given: given.update({"head.bias": np.zeros((3, 1), np.float32)}), r"head.bias .* float32\(3, 1\), not float32\(3,\)"),
        (lambda given: given.update({"head.bias": np.zeros(3)}), r"head.bias .* float64\(3,\), not float32\(3,\)"),
    ],
)
@pytest.mark.parametrize("rule", ["weighted_mean", "median", "trimmed_mean", "krum"])
def test_a_contribution_that_does_not_fit_is_refused_by_name_and_changes_nothing(
    rule: str, spoil: Callable[[Tensors], None], says: str
) -> None:
    subject, theta = aggregator("adam", name=rule), tensors(np.random.default_rng(2))
    theta, _ = subject.aggregate(theta, round_of(6))
    before = subject.state()
    with pytest.raises(AggregationError, match=f"tensor {says}") as refused:
        subject.aggregate(theta, spoilt(spoil))
    assert refused.value.agents == (AGENTS[4],)
    assert AGENTS[4].short in str(refused.value)
    after = subject.state()
    assert all(np.array_equal(before[name], after[name]) for name in before | after)


def test_a_step_that_overflows_is_refused_and_changes_nothing() -> None:
    subject = aggregator("momentum", rate=1e38)
    with pytest.raises(AggregationError, match="lower server_rate"):
        subject.aggregate({"w": np.ones(1, np.float32)}, {AGENTS[0]: ({"w": np.full(1, 1e3, np.float32)}, 1, 1.0)})
    assert subject.state()["steps"] == 0


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_a_step_that_overflows_is_the_fault_of_the_greatest_value_in_the_tensor_that_does(optimizer: Optimizer) -> None:
    """3e38 is finite in float32, and so is theta; 1e200 is nothing in float64."""
    subject, theta = aggregator(optimizer), {"v": np.ones(1), "w": np.full(2, -1e38, np.float32)}
    given = {
        AGENTS[0]: ({"v": np.full(1, 1e200), "w": np.ones(2, np.float32)}, 1, 1.0),
        AGENTS[1]: ({"v": np.ones(1), "w": np.array([3e38, 1.0], np.float32)}, 99, 1.0),
    }
    with pytest.raises(AggregationError, match=r"tensor w .* makes theta overflow: it has a value of 3e\+38") as refused:
        subject.aggregate(theta, given)
    assert refused.value.agents == (AGENTS[1],)
    del given[AGENTS[1]]
    stepped, _ = subject.aggregate(theta, given)
    assert stepped["v"].tolist() == [-1e200]


@pytest.mark.parametrize("optimizer", ["adam", "yogi"])
def test_a_step_whose_moments_overflow_is_refused_and_changes_nothing(optimizer: Optimizer) -> None:
    """1e160 is finite, and its square is not: the moment would stay infinite, and theta where it is, for good."""
    subject, theta = aggregator(optimizer, rate=0.01), {"w": np.ones(2)}
    theta, _ = subject.aggregate(theta, {AGENTS[0]: (theta, 1, 1.0)})
    before = subject.state()
    with pytest.raises(AggregationError, match=r"tensor w .* makes moment_2 of the optimizer's state overflow") as refused:
        subject.aggregate(theta, {AGENTS[0]: ({"w": np.ones(2)}, 9, 1.0), AGENTS[1]: ({"w": np.array([1e160, 1.0])}, 1, 1.0)})
    assert refused.value.agents == (AGENTS[1],)
    after = subject.state()
    assert all(np.array_equal(before[name], after[name]) for name in before | after)
    moved, _ = subject.aggregate(theta, {AGENTS[0]: ({"w": np.ones(2)}, 1, 1.0)})
    assert (moved["w"] != theta["w"]).all()


def test_weights_that_make_no_mean_are_refused() -> None:
    theta = {"w": np.ones(1, np.float32)}
    with pytest.raises(AggregationError, match="none of 0 contributions"):
        aggregator().aggregate(theta, {})
    with pytest.raises(AggregationError, match="none of 2 contributions has a weight above 0: give these agents data") as refused:
        aggregator().aggregate(theta, dict.fromkeys(AGENTS[:2], (theta, 0, 1.0)))
    assert refused.value.agents == tuple(sorted(AGENTS[:2]))
    with pytest.raises(AggregationError, match="neither may be below 0"):
        aggregator().aggregate(theta, {AGENTS[0]: (theta, 5, float("nan"))})
    with pytest.raises(AggregationError, match="only float32 and float64"):
        aggregator().aggregate({"w": np.ones(1, np.int64)}, {})


def test_the_state_of_another_optimizer_or_model_is_refused() -> None:
    adam = aggregator("adam")
    adam.aggregate(tensors(np.random.default_rng(1)), round_of(1))
    for state, says in [
        (adam.state(), "another optimizer than momentum"),
        ({}, "no count of its steps"),
        ({"steps": np.array([1]), "velocity": np.full(2, np.nan)}, "velocity .* not a finite vector"),
    ]:
        with pytest.raises(AggregationError, match=says):
            aggregator("momentum").restore(state)
    with pytest.raises(AggregationError, match=r"moment_1 .* has 116 values, theta has 2"):
        adam.aggregate({"w": np.ones(2, np.float32)}, {})


@pytest.mark.parametrize(("was", "is_now"), [("adam", "yogi"), ("yogi", "adam")])
def test_moments_of_one_name_are_not_taken_for_those_of_another_optimizer(was: Optimizer, is_now: Optimizer) -> None:
    before, after = aggregator(was), aggregator(is_now)
    after.restore(before.state())  # of which no step was made
    before.aggregate(tensors(np.random.default_rng(1)), round_of(1))
    with pytest.raises(AggregationError, match=f"the state is of another optimizer than {is_now}: it is of {was}"):
        after.restore(before.state())
    assert after.state()["steps"] == 0


def test_a_state_that_does_not_say_its_optimizer_is_known_by_its_moments() -> None:
    """Records of an earlier FMRec are gone on from."""
    before, theta = aggregator("adam"), tensors(np.random.default_rng(1))
    before.aggregate(theta, round_of(1))
    unnamed = {name: array for name, array in before.state().items() if name != "optimizer"}
    after = aggregator("adam")
    after.restore(unnamed)
    assert {name: array.tobytes() for name, array in after.state().items()} == {n: a.tobytes() for n, a in before.state().items()}
    with pytest.raises(AggregationError, match="another optimizer than momentum: it holds"):
        aggregator("momentum").restore(unnamed)


def test_read_only_arrays_as_they_come_from_the_wire_will_do() -> None:
    gradient = np.frombuffer(np.ones(2, np.float32).tobytes(), dtype=np.float32)
    stepped, _ = aggregator().aggregate({"w": gradient}, {AGENTS[0]: ({"w": gradient}, 1, 1.0)})
    assert stepped["w"].tolist() == [0.0, 0.0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_said_in_words() -> None:
    with pytest.raises(AggregationError, match='set device to "auto" or "cpu"'):
        aggregator(device="cuda")
    assert aggregator(device="auto").device.type == "cpu"


@needs_cuda
@pytest.mark.parametrize("rule", ["weighted_mean", "median", "trimmed_mean", "krum"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi"])
def test_cuda_gives_the_bits_of_the_cpu(optimizer: Optimizer, rule: str) -> None:
    thetas = []
    for device in ("cpu", "cuda"):
        subject, theta = aggregator(optimizer, rate=0.02, device=device, name=rule), tensors(np.random.default_rng(3))
        for number in range(5):
            theta, _ = subject.aggregate(theta, round_of(number))
        assert subject.device.type == device
        thetas.append(b"".join(theta[name].tobytes() for name in sorted(theta)))
    assert thetas[0] == thetas[1]
