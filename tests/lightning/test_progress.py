"""What progress bars and the log say while stages are built: shard, slice, epoch, and the time that is left."""

import logging
import re
from types import SimpleNamespace

import lightning
import pytest
import pytorch_lightning as pl
from lightning.pytorch import callbacks as library

from pybrush.plan.outlook import clock
from pybrush.record import Record
from tests.lightning.models import Net, OtherNet, Validated
from tests.lightning.twin import KEY, Case, data_for, trainer_for

SECONDS = 10
"""A visit of one row takes ten seconds on the clock of these tests."""
CLOCK = SimpleNamespace(now=0.0)


class Ticking:
    """Lets the clock go on with each batch."""

    def training_step(self, batch, index):
        CLOCK.now += SECONDS * len(batch[1])
        return super().training_step(batch, index)


class TickingNet(Ticking, Net):
    pass


class OtherTickingNet(Ticking, OtherNet):
    pass


@pytest.fixture(autouse=True)
def by_the_clock(monkeypatch):
    time = SimpleNamespace(perf_counter=lambda: CLOCK.now)
    monkeypatch.setattr("pybrush.build.time", time)
    monkeypatch.setattr("pybrush_lightning.progress.time", time)


PACKAGES = {"lightning": (lightning, TickingNet, library), "pytorch_lightning": (pl, OtherTickingNet, pl.callbacks)}
BARS = {
    "tqdm": lambda kinds: kinds.TQDMProgressBar(),
    "rich": lambda kinds: kinds.RichProgressBar(console_kwargs={"force_terminal": True, "width": 240}),
}
SHAPE = re.compile(r"Epoch (\d+).*?shard(?:=|: )(\d)/2.*?slice(?:=|: )(\d)/2.*?left(?:=|: )([\d:?]+)")


def shown(text):
    """Return (shard, slice, epoch) -> the time left that a bar showed last then."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    found = (SHAPE.search(line) for line in re.split(r"[\r\n]+", plain))
    return {tuple(int(m[k]) for k in (2, 3, 1)): m[4] for m in found if m}


def expected(folder):
    """Return the same for the end of every epoch, from the rows of each stage."""
    record = Record.open(folder / "record", KEY)
    stages = [
        (s.shard + 1, s.slice + 1, epoch, s.rows) for s in record.graph() for epoch in (2 * s.slice, 2 * s.slice + 1)
    ]
    return {
        stage[:3]: clock(SECONDS * sum(rows for *_, rows in stages[number + 1 :]))
        for number, stage in enumerate(stages)
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_a_tqdm_bar_says_shard_slice_epoch_and_the_time_that_is_left(package, tmp_path, capsys):
    library, make, kinds = PACKAGES[package]
    case = Case(make, epochs=3, package=library)
    bar = BARS["tqdm"](kinds)
    trainer_for(case, tmp_path, enable_progress_bar=True, callbacks=[bar]).fit(make(), **data_for(case))
    assert shown(capsys.readouterr().out) == expected(tmp_path)
    assert "get_metrics" not in vars(bar)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_rich_bar_says_shard_slice_epoch_and_the_time_that_is_left(package, tmp_path, capsys):
    """It is drawn at every refresh here, and never says a stage beside another one's epoch."""
    library, make, kinds = PACKAGES[package]
    case = Case(make, epochs=3, package=library)
    bar = BARS["rich"](kinds)

    def refresh(hard=False):
        bar.progress.refresh()

    bar.refresh = refresh
    trainer_for(case, tmp_path, enable_progress_bar=True, callbacks=[bar]).fit(make(), **data_for(case))
    assert shown(capsys.readouterr().out) == expected(tmp_path)
    assert "get_metrics" not in vars(bar)


def test_the_bar_of_a_request_counts_the_stages_of_the_request(tmp_path, capsys):
    case = Case(TickingNet, epochs=3)
    trainer = trainer_for(case, tmp_path, enable_progress_bar=True, callbacks=[library.TQDMProgressBar()])
    trainer.fit(TickingNet(), **data_for(case))
    capsys.readouterr()
    cost = trainer.unlearn(rows=[3]).cost
    first = re.search(r"left=([\d:]+)", capsys.readouterr().out)[1]
    minutes, seconds = map(int, first.split(":")[-2:])
    assert 0 < 60 * minutes + seconds < SECONDS * cost.visits


class Wordy(library.TQDMProgressBar):
    """A user's bar that shows metrics of its own, one under a name of ours."""

    def get_metrics(self, trainer, pl_module):
        return {**super().get_metrics(trainer, pl_module), "left": "mine", "epochs": trainer.max_epochs}


def test_what_the_users_bar_shows_itself_stays(tmp_path, capsys):
    case = Case(TickingNet)
    trainer_for(case, tmp_path, enable_progress_bar=True, callbacks=[Wordy()]).fit(TickingNet(), **data_for(case))
    text = capsys.readouterr().out
    assert "shard=1/2, slice=1/2, left=mine, epochs=4" in text
    assert not re.search(r"left=\d", text)


class Failing(Validated):
    def on_train_epoch_end(self):
        if self.current_epoch == 2:
            raise ArithmeticError


def test_after_an_error_the_bar_is_as_it_was(tmp_path, capsys):
    case, bar = Case(Failing, validation=True), library.TQDMProgressBar()
    trainer = trainer_for(case, tmp_path, enable_progress_bar=True, callbacks=[bar])
    with pytest.raises(ArithmeticError):
        trainer.fit(Failing(), **data_for(case))
    assert "get_metrics" not in vars(bar) and "slice=2/2" in capsys.readouterr().out


def test_the_log_has_a_line_for_each_stage(tmp_path, caplog):
    case = Case(TickingNet, epochs=3)
    with caplog.at_level(logging.INFO, "pybrush"):
        trainer_for(case, tmp_path).fit(TickingNet(), **data_for(case))
    lines = [message for name, _, message in caplog.record_tuples if name == "pybrush.build"]
    ends = {key: left for key, left in expected(tmp_path).items() if key[2] % 2}
    assert lines[0].startswith("stages to build: 4, ")
    assert [line.rsplit("; ", 1)[1] for line in lines[1:]] == [f"{left} left" for left in ends.values()]
    assert [line.split(": ", 1)[1].split(", ")[:2] for line in lines[1:]] == [
        [f"shard {shard - 1}", f"slice {cell - 1}"] for shard, cell, _ in ends
    ]
