"""What a plan costs when requests come: expected training work in closed form, before anything is trained.

A *visit* is one row in one epoch of one stage that a request rebuilds, so visits are the work of forgetting
in the unit in which a retrain is counted too. A request rebuilds, in every shard it hits, the stages from
the first hit slice on, on the rows that are left. As in the record (pybrush/plan/graph.py) a stage is
trained only where its own slice has rows and its shard has two rows so far; both rules matter once cells
hold few rows.

After SISA (Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817; the paper was not at hand, every formula here
is our own derivation and is checked by enumeration in tests/core/test_plan_cost.py). Deviations: slices are
counted, rows that are left are counted without replacement, and with placement "keyed" sizes vary.

One row per id and forget ids that do not depend on the placement are assumed: equal rows share a cell, the
rows of a subject may lie in several, and an adversary who knows the key can choose costlier requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pybrush.errors import ConfigurationError
from pybrush.plan.placement import positive

Order = Literal["batch", "sequential"]
Placement = Literal["keyed", "equal"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cost:
    """Expected work of forgetting, over the draw of the placement and of the forget ids.

    Attributes:
        visits: rows x epochs of the stages that are rebuilt, summed over the requests.
        retrain_visits: rows x epochs of the full retrains, without shards and slices, that would serve the
            same requests: one on the rows that are left with order "batch", one after each request with
            order "sequential".
        shards_hit: shards that hold at least one id of a request, summed over the requests; with order
            "sequential" each request hits one, so that it equals their number.
    """

    visits: float
    retrain_visits: float
    shards_hit: float


def epochs_per_slice(epochs: int, slices: int) -> int:
    """Return the epochs of each stage, ceil(2 epochs / (slices + 1)).

    Stage r of R trains on r/R of its shard, so R stages of that many epochs visit as many rows as `epochs`
    epochs on the whole shard, rounded up.

    Args:
        epochs: epochs of the fit without slices.
        slices: number of slices R of a shard.

    Raises:
        ConfigurationError: where either is not a whole number of at least 1.

    Example:
        >>> epochs_per_slice(20, 3)
        10
    """
    return -(-2 * positive("epochs", epochs) // (positive("slices", slices) + 1))


def expected_cost(
    samples: int,
    shards: int,
    slices: int,
    epochs: int,
    requests: int,
    order: Order = "batch",
    placement: Placement = "keyed",
) -> Cost:
    """Return the expected work of forgetting `requests` of `samples` ids.

    Takes time and memory that grow with slices x requests ("sequential") and not with the number of samples.

    Args:
        samples: number n of ids before the first request.
        shards: number S of shards.
        slices: number R of slices of a shard.
        epochs: epochs of the fit without slices.
        requests: number K of forgotten ids, fewer than `samples`.
        order: "batch" serves all ids in one request, "sequential" one id after another.
        placement: "keyed" draws the cell of each id independently, as ShardPlan does. "equal" cuts the ids
            into equal shards and these into equal slices, as in the paper; where sizes do not divide, the
            first n mod S shards hold one id more, and so do the first slices of a shard.

    Raises:
        ConfigurationError: where a number is not whole and positive, nothing would remain, or order or
            placement is another word.

    Example:
        >>> cost = expected_cost(50_000, shards=10, slices=1, epochs=20, requests=1)
        >>> round(cost.retrain_visits / cost.visits, 6)  # one request costs a tenth of a retrain
        10.0
    """
    samples, shards = positive("samples", samples), positive("shards", shards)
    slices, epochs = positive("slices", slices), positive("epochs", epochs)
    requests = positive("requests", requests)
    if requests >= samples:
        raise ConfigurationError(
            f"requests must be fewer than samples; got {requests} of {samples}. "
            "Where nothing remains, delete the model instead."
        )
    if (placement, order) not in _VISITS:
        raise ConfigurationError(
            f"order must be 'batch' or 'sequential' and placement 'keyed' or 'equal'; got {order!r} and {placement!r}."
        )
    rows = _VISITS[placement, order](samples, shards, slices, requests)
    retrained = _rows_left(samples, requests, order)
    hit = float(requests) if order == "sequential" else _shards_hit(samples, shards, requests, placement)
    return Cost(epochs_per_slice(epochs, slices) * rows, float(epochs * retrained), hit)


def _rows_left(samples: int, requests: int, order: Order) -> int:
    """Return the rows that retrains visit in one epoch, summed over the retrains."""
    if order == "batch":
        return samples - requests
    return requests * samples - requests * (requests + 1) // 2


def _shards_hit(samples: int, shards: int, requests: int, placement: Placement) -> float:
    """Return the expected number of different shards that hold one of the forgotten ids."""
    if placement == "keyed":
        return float(shards * (1 - (1 - 1 / shards) ** requests))
    sizes = Counter(_cut(samples, shards))
    return sum(count * (1 - _none_drawn(samples, size, requests)) for size, count in sizes.items())


# Keyed: cells are drawn independently, so what is left and what is hit are independent of each other.


def _keyed_batch(samples: int, shards: int, slices: int, requests: int) -> float:
    cells, left = shards * slices, float(samples - requests)
    rows = 0.0
    for q in range(1, slices + 1):
        rows += float(_keyed_trained(left, q, cells)) * (1 - (1 - q / cells) ** requests)
    return shards * rows


def _keyed_sequential(samples: int, shards: int, slices: int, requests: int) -> float:
    cells, left = shards * slices, samples - np.arange(1.0, requests + 1)
    rows = 0.0
    for q in range(1, slices + 1):
        rows += float(np.sum(_keyed_trained(left, q, cells))) * q / cells
    return shards * rows


def _keyed_trained(left: float | Floats, q: int, cells: int) -> float | Floats:
    """Return the expected rows of a stage on q slices, counted as 0 where the stage is not trained.

    Of the expected left x q / cells rows those are taken off that lie before an empty last slice, and a
    single row in the last slice.
    """
    before_an_empty_slice = left * (q - 1) / cells * (1 - 1 / cells) ** (left - 1)
    alone = left / cells * (1 - q / cells) ** (left - 1)
    return left * q / cells - before_an_empty_slice - alone


# Equal: sizes are fixed, and forgotten ids are drawn without replacement (hypergeometric).


def _equal_batch(samples: int, shards: int, slices: int, requests: int) -> float:
    rows = 0.0
    for count, earlier, own in _equal_stages(samples, shards, slices):
        size = earlier + own
        unhit = size * _none_drawn(samples, size, requests) if own and size > 1 else 0.0
        rows += count * (float(_equal_trained(samples, earlier, own, np.float64(requests))) - unhit)
    return rows


def _equal_sequential(samples: int, shards: int, slices: int, requests: int) -> float:
    """Sum over requests; the id of each lies in the stage's own slice, in an earlier one, or elsewhere."""
    struck_before = np.arange(0.0, requests)
    rows = 0.0
    for count, earlier, own in _equal_stages(samples, shards, slices):
        for hit, sizes in ((own, (earlier, own - 1)), (earlier, (earlier - 1, own))):
            if hit:
                trained = _equal_trained(samples - 1, *sizes, struck_before)
                rows += count * hit / samples * float(np.sum(trained))
    return rows


def _equal_stages(samples: int, shards: int, slices: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each kind of stage: how many there are, rows in earlier slices, rows in its own slice."""
    for size, count in Counter(_cut(samples, shards)).items():
        earlier = 0
        for own in _cut(size, slices):
            yield count, earlier, own
            earlier += own


def _equal_trained(samples: int, earlier: int, own: int, struck: np.float64 | Floats) -> np.float64 | Floats:
    """Return the expected rows of a stage after `struck` ids; 0 where it is then not trained.

    Both terms taken off are of one kind: some rows of the stage are all struck and a further one is not.
    Where the stage's own slice was empty from the start, the first takes everything off.
    """
    before_an_empty_slice = earlier * _struck_but_one(samples, own, struck)
    alone = own * _struck_but_one(samples, earlier + own - 1, struck)
    return (earlier + own) * (samples - struck) / samples - before_an_empty_slice - alone


def _struck_but_one(samples: int, rows: int, struck: np.float64 | Floats) -> np.float64 | Floats:
    """Return the chance that `rows` given ids are among the struck ones and one further given id is not."""
    # Where fewer than `rows` are struck, log-gamma is at a pole, infinite, and the chance comes out as 0.
    logarithm = gammaln(struck + 1) - gammaln(struck - rows + 1)
    logarithm += gammaln(samples - rows + 1) - gammaln(samples + 1)
    # Fewer than `samples` are struck, so `samples - rows` is 0 only where the chance is 0 anyway.
    chance: np.float64 | Floats = np.exp(logarithm) * (samples - struck) / max(samples - rows, 1)
    return chance


def _none_drawn(samples: int, rows: int, drawn: int) -> float:
    """Return the chance that `drawn` of `samples` ids, without replacement, miss `rows` given ones.

    A product and not log-gamma as above, of which a billion samples leave six digits: this chance is
    subtracted from a number that is nearly as large.
    """
    few, many = sorted((rows, drawn))
    if rows + drawn > samples:
        return 0.0
    return float(np.exp(np.sum(np.log1p(-many / (samples - np.arange(0.0, few))))))


def _cut(total: int, parts: int) -> list[int]:
    """Return the sizes of nearly equal parts, larger ones first."""
    size, more = divmod(total, parts)
    return [size + 1] * more + [size] * (parts - more)


_VISITS: dict[tuple[str, str], Callable[[int, int, int, int], float]] = {
    ("keyed", "batch"): _keyed_batch,
    ("keyed", "sequential"): _keyed_sequential,
    ("equal", "batch"): _equal_batch,
    ("equal", "sequential"): _equal_sequential,
}
