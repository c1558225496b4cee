"""A Learner of sixty lines: logistic regression in NumPy with momentum and dropout on the inputs."""

import numpy as np

from pybrush.content import encode
from pybrush.learner import Trained
from pybrush.names import Namer
from pybrush.plan.order import cut
from pybrush.record.create import PlanWish
from pybrush.request import Roster

RATE, MOMENTUM, BATCH = 0.1, 0.9, 4


class NumpyLearner:
    """Trains `weights` on data = (x, y); state is the weights, and the velocity once training began."""

    def __init__(self, weights):
        self.weights = np.array(weights, dtype=np.float64)
        self.velocity = None
        self.trained = []
        self.fail_at = None

    def read_state(self):
        velocity = None if self.velocity is None else self.velocity.copy()
        return {"weights": self.weights.copy(), "velocity": velocity}

    def write_state(self, state):
        self.weights = state["weights"].copy()
        self.velocity = None if state["velocity"] is None else state["velocity"].copy()

    def train_stage(self, data, rows, horizon, seeds):
        if self.fail_at == (horizon.shard, horizon.slice):
            raise ArithmeticError("training failed on purpose")
        x, y = data
        if horizon.epochs_before == 0:
            self.velocity = np.zeros_like(self.weights)
        steps = 0
        for epoch in range(horizon.epochs):
            rng = np.random.default_rng(seeds(epoch, "train"))
            for batch in cut(rows(epoch), BATCH, drop_last=False):
                self.step(x[batch], y[batch], rng)
                steps += 1
        self.trained.append((horizon.shard, horizon.slice))
        return Trained(steps, steps * RATE / (1 - MOMENTUM))

    def step(self, x, y, rng):
        x = x * (rng.random(x.shape) < 0.8)
        p = 1 / (1 + np.exp(-(x @ self.weights)))
        self.velocity = MOMENTUM * self.velocity + x.T @ (p - y) / len(y)
        self.weights = self.weights - RATE * self.velocity

    def drop_training(self):
        self.velocity = None

    def session(self, build):
        return build()

    def semantic(self, namer):
        return {"model": "logistic", "rate": RATE, "momentum": MOMENTUM, "batch": BATCH}

    def environment(self):
        return {"numpy": np.__version__}


def wish(
    shards=3,
    slices=2,
    epochs=3,
    seed=11,
    order="shuffled",
    naming="ids",
    contents="digest",
    key=bytes(range(32)),
    encrypt=None,
):
    return PlanWish(shards, slices, epochs, seed, order, naming, contents, "numpy", key, encrypt=encrypt)


def roster_of(data, ids=None, subjects=None):
    """Return the function that names the rows of `data` under a key."""
    x, y = data

    def name(namer: Namer) -> Roster:
        return Roster(namer, len(y), ids, subjects, lambda i: encode((x[i], y[i])))

    return name
