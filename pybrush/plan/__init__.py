"""Plans: where samples go, in which order they are seen, what a stage is, and what it all costs."""

from pybrush.plan.aggregate import aggregate
from pybrush.plan.cost import Cost, epochs_per_slice, expected_cost
from pybrush.plan.placement import ShardPlan

__all__ = ["Cost", "ShardPlan", "aggregate", "epochs_per_slice", "expected_cost"]
