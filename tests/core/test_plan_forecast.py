"""Forecasts against a simulation that places, forgets and counts rows, and against files and runs.

The simulation knows nothing of the formulas: it draws placements and plays requests on them.
"""

import numpy as np
import pytest

from pybrush.errors import ConfigurationError
from pybrush.plan import forecast
from pybrush.plan.forecast import Sizes
from tests.core.test_plan_cost import Z_LIMIT, serve, z_score

DIGITS = Sizes(samples=1797, shards=5, slices=4, epochs=20)


def placed(rng, sizes):
    """Return a drawn placement of all samples."""
    cells = {(s, r): set() for s in range(sizes.shards) for r in range(sizes.slices)}
    for sample in range(sizes.samples):
        cells[int(rng.integers(sizes.shards)), int(rng.integers(sizes.slices))].add(sample)
    return cells


def simulated(sizes, requests, draws):
    """Return shares of retrains in drawn placements; `requests` are the numbers of samples of each request."""
    rng, shares = np.random.default_rng(0), []
    epochs = -(-2 * sizes.epochs // (sizes.slices + 1))
    for _ in range(draws):
        ids = iter(rng.permutation(sizes.samples).tolist())
        struck = [{next(ids) for _ in range(count)} for count in requests]
        rebuilt, retrained, _ = serve(placed(rng, sizes), struck)
        shares.append(epochs * rebuilt / (sizes.epochs * retrained))
    return shares


def test_one_sample_of_the_digits_in_five_shards_of_four_slices_costs_15_percent_of_a_retrain():
    (price,) = forecast.prices(DIGITS, [1])
    share = price.together.visits / price.together.retrain_visits
    assert share == pytest.approx(0.150, abs=5e-4)
    assert price.in_turn.visits / price.in_turn.retrain_visits == pytest.approx(share)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_prices_are_what_drawn_placements_cost_on_average(count):
    sizes = Sizes(samples=300, shards=5, slices=4, epochs=20)
    (price,) = forecast.prices(sizes, [count])
    together, in_turn = price.together, price.in_turn
    draws = simulated(sizes, [count], 200)
    assert abs(z_score(draws, together.visits / together.retrain_visits)) < Z_LIMIT
    draws = simulated(sizes, [1] * count, 200)
    assert abs(z_score(draws, in_turn.visits / in_turn.retrain_visits)) < Z_LIMIT


@pytest.mark.parametrize(("shards", "slices", "epochs"), [(1, 1, 7), (4, 1, 20), (5, 4, 20), (3, 3, 6), (2, 4, 8)])
def test_the_share_of_the_training_is_that_of_drawn_placements(shards, slices, epochs):
    sizes = Sizes(4000, shards, slices, epochs)
    cells = placed(np.random.default_rng(1), sizes)
    rows = sum(len(cells[s, r]) for s in range(shards) for last in range(slices) for r in range(last + 1))
    visits = -(-2 * epochs // (slices + 1)) * rows
    assert forecast.training_share(sizes) == pytest.approx(visits / (4000 * epochs), rel=0.03)


@pytest.mark.parametrize(("shards", "slices"), [(2, 1), (4, 3), (10, 5)])
def test_from_three_samples_a_shard_on_nine_tenths_of_a_retrain_are_rebuilt(shards, slices):
    sizes = Sizes(3000, shards, slices, 30)
    (price,) = forecast.prices(sizes, [forecast.saving_ends(shards)])
    assert price.together.visits > 0.85 * forecast.training_share(sizes) * price.together.retrain_visits
    assert simulated(sizes, [forecast.saving_ends(shards)], 1)[0] > 0.7


def test_usual_requests_leave_something_to_train_on():
    assert [forecast.usual_requests(n) for n in (1, 2, 10, 11, 101)] == [(), (1,), (1,), (1, 10), (1, 10, 100)]
    for samples in (2, 11, 101):
        sizes = Sizes(samples, 2, 2, 2)
        assert len(forecast.prices(sizes, forecast.usual_requests(samples))) >= 1


@pytest.mark.parametrize("name", ["samples", "shards", "slices", "epochs"])
@pytest.mark.parametrize("wrong", [0, -3, 2.5, "many", True])
def test_sizes_are_whole_and_positive(name, wrong):
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number"):
        Sizes(**{"samples": 10, "shards": 2, "slices": 2, "epochs": 2, name: wrong})


@pytest.mark.parametrize("wrong", [0, -1, "1e6", True, None, float("inf"), float("nan")])
def test_bytes_of_a_model_are_positive(wrong):
    with pytest.raises(ConfigurationError, match="model_bytes"):
        forecast.stage_bytes_of(wrong)
    assert forecast.stage_bytes_of(1e6) == 3_000_000
