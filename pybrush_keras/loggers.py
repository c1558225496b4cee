"""What Keras' own loggers write of many stages: CSVLogger one file with all of them, TensorBoard a run for each shard.

To Keras each stage is a fit of its own: without this each would overwrite the file of the one before it, with other
columns where it validates in other epochs, and the steps of several shards would lie in one curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pybrush.learner import Horizon
from pybrush.replaced import replaced


@contextmanager
def one_file(callbacks: Iterable[Any]) -> Iterator[None]:
    """Let every CSVLogger open its file when the first stage begins, and close it after the last one."""
    with ExitStack() as stack:
        for callback in _of_kind("CSVLogger", callbacks):
            stack.callback(callback.on_train_end)
            stack.enter_context(
                replaced(callback, on_train_begin=_once(callback.on_train_begin), on_train_end=_nothing)
            )
        yield


@contextmanager
def by_shard(callbacks: Iterable[Any], horizon: Horizon) -> Iterator[None]:
    """Let every TensorBoard write a stage of several into `shard_0` and so on, below its folder."""
    with ExitStack() as stack:
        for callback in _of_kind("TensorBoard", callbacks):
            if horizon.outlook.shards > 1:
                folder = str(Path(callback.log_dir) / f"shard_{horizon.shard}")
                stack.enter_context(replaced(callback, log_dir=folder))
        yield


def _of_kind(name: str, callbacks: Iterable[Any]) -> Iterator[Any]:
    return (callback for callback in callbacks if any(base.__name__ == name for base in type(callback).__mro__))


def _once(begin: Any) -> Any:
    begun: list[bool] = []

    def on_train_begin(logs: Any = None) -> None:
        if not begun:
            begun.append(True)
            begin(logs)

    return on_train_begin


def _nothing(logs: Any = None) -> None:
    """Stay open."""
