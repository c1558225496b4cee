"""How long building will take: visits that are left, times the seconds measured for a visit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """What a stage knows of the stages that are built with it.

    A visit is one row in one epoch.

    Attributes:
        number: of the stage among those to build, counted from 1.
        count: stages to build.
        shards: S of the plan.
        slices: R of the plan.
        visits: of this stage.
        later: visits of the stages after it.
        measured: visits of finished stages.
        seconds: what these took.

    Example:
        >>> Outlook(number=2, count=3, visits=100, later=50, measured=100, seconds=20.0).left()
        30.0
    """

    number: int = 1
    count: int = 1
    shards: int = 1
    slices: int = 1
    visits: int = 0
    later: int = 0
    measured: int = 0
    seconds: float = 0.0

    def left(self, share: float = 0.0, elapsed: float = 0.0) -> float | None:
        """Return the seconds until every stage is built; None where nothing was measured yet.

        Args:
            share: part of this stage that is done, from 0 to 1.
            elapsed: seconds that this part took.
        """
        done = share * self.visits
        visits, seconds = self.measured + done, self.seconds + elapsed
        return (self.visits - done + self.later) * seconds / visits if visits else None


def clock(seconds: float | None) -> str:
    """Return seconds as a clock shows them, "?" where they are not known.

    Example:
        >>> clock(83), clock(3661)
        ('1:23', '1:01:01')
    """
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
