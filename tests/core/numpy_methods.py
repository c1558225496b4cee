"""Two small methods for the NumPy learner, in the place of those that do not train again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pybrush.guarantee import Assumption, Certified, Empirical
from pybrush.method import Applied, Terms

LITTLE = Empirical((), ("a few steps show little",))


@dataclass(frozen=True)
class Ascent:
    """A few steps up the loss of the forgotten rows, then as many down that of the others, on a few of them."""

    steps: int = 3
    rate: float = 0.2
    fail_at: int | None = field(default=None, compare=False)
    seen: list = field(default_factory=list, compare=False)
    name: str = "ascent"
    promise: Empirical = LITTLE
    needs: frozenset = frozenset({"forget", "retain"})

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"steps": self.steps, "rate": self.rate}

    def apply(self, learner, portion):
        self.seen.append((portion.shard, portion.forget.tolist(), portion.retain.tolist()))
        if self.fail_at == portion.shard:
            learner.weights = learner.weights * np.nan
            raise ArithmeticError("the method failed on purpose")
        (x, y), visits = portion.data, 0
        for step in range(self.steps):
            rng = np.random.default_rng(portion.seeds(f"step {step}"))
            some = rng.permutation(portion.retain)[: len(portion.forget)]
            for rows, sign in ((portion.forget, 1), (some, -1)):
                p = 1 / (1 + np.exp(-(x[rows] @ learner.weights)))
                learner.weights = learner.weights + sign * self.rate * x[rows].T @ (p - y[rows]) / max(len(rows), 1)
                visits += len(rows)
        proved = Empirical((f"{len(portion.forget)} rows climbed",), LITTLE.limitations)
        return Applied(proved, visits=visits, steps=2 * self.steps)


@dataclass(frozen=True)
class Shrink:
    """Scales the weights: what a certified method would hand out, and beside it the secret weights themselves."""

    epsilon: float = 0.5
    delta: float = 1e-6
    proves: Certified | Empirical | None = field(default=None, compare=False)
    secrets: list = field(default_factory=list, compare=False)
    name: str = "shrink"
    needs: frozenset = frozenset()

    @property
    def promise(self):
        assumed = Assumption("convex", "the loss is convex", "declared", "unknown")
        return Certified(self.epsilon, self.delta, "training without them", "one request", None, (assumed,))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"epsilon": self.epsilon, "delta": self.delta}

    def apply(self, learner, portion):
        self.secrets.append(portion.secret)
        exact = learner.weights if portion.secret is None else portion.secret["weights"]
        secret = {"weights": exact * 0.5, "rows": len(portion.retain)}
        learner.weights = secret["weights"] + 0.001
        return Applied(self.proves or self.promise, secret=secret, steps=1)


def by(method, guarantee=None):
    return Terms(method, guarantee)


def exactly():
    return Terms(None, "exact")
