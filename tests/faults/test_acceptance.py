"""Twenty requests of mixed kinds in a row, with kills between and inside them, and then a search of every file.

The module keeps the rows that it saw, bit for bit, in a buffer: so each state and checkpoint that saw a row holds a
pattern that cannot be overlooked. Afterwards the record has the bits of a training that never had the forgotten rows,
and below the trainer's root no file holds anything of them, in its bytes or its name, but one: the notes that the
user's own code keeps, of which PyBrush knows nothing.
"""

import os
import random
import signal
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from pybrush.errors import ErasureError
from pybrush.guarantee import Empirical
from pybrush.method import Applied
from pybrush.record import Record
from pybrush_lightning import SISA
from tests import reference
from tests.core.processes import fork, status_of
from tests.faults.training import in_process
from tests.lightning.models import KILL
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import KEY, SEED

N, OWNERS, GROUPS = 90, 30, 4
"""Rows; people; groups of three rows with equal contents."""
NEW = range(N - 6, N)
"""Rows that are not there at first."""


class Patients(Dataset):
    """Rows whose inputs and targets are patterns of their own; rows may be deleted, and their targets amended."""

    def __init__(self, deleted=(), amended=()):
        draw = np.random.default_rng(7)
        x, y = draw.normal(size=(N, 6)).astype("float32"), draw.normal(size=(N, 2)).astype("float32")
        for group in range(GROUPS):
            x[[group + 10, group + 20]], y[[group + 10, group + 20]] = x[group], y[group]
        y[list(amended)] += 1
        left = [row for row in range(N) if row not in set(deleted)]
        self.x, self.y = torch.from_numpy(x[left]), torch.from_numpy(y[left])
        self.names = [f"scans/patient-{row:06d}.png" for row in left]
        self.owners = [f"person-{row % OWNERS:010d}" for row in left]
        self.days = [str(date(2020, 1, 1) + timedelta(days=row)) for row in left]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, row):
        return self.x[row], self.y[row]


class Remembers(lightning.LightningModule):
    """Keeps every row that it is trained on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        self.register_buffer("seen", torch.zeros(4 * N, 8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        KILL.step()
        x, y = batch
        with torch.no_grad():
            places = (self.count + torch.arange(len(x))) % len(self.seen)
            self.seen[places] = torch.cat([x, y], 1)
            self.count += len(x)
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def predict_step(self, batch, index):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


PROMISE = Empirical((), ("nothing was measured",))


@dataclass(frozen=True)
class Shrinking:
    """An approximate method, of no use to anybody: weights shrink, and what was seen is wiped out."""

    name: str = "shrinking"
    promise: Empirical = PROMISE
    needs: frozenset = frozenset()
    settings: dict = field(default_factory=dict)

    def apply(self, learner, portion):
        with torch.no_grad():
            for parameter in learner.module.parameters():
                parameter *= 0.9
            learner.module.seen.zero_()
        return Applied(self.promise)


class Notes(lightning.Callback):
    """Writes the user's own notes: of these PyBrush knows nothing, and the documents say so."""

    def on_fit_end(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir) / "notes"
        folder.mkdir(exist_ok=True)
        folder.joinpath("patients.txt").write_text("\n".join(NAMES))


PATIENTS = Patients()
NAMES, PEOPLE, DAYS = PATIENTS.names, PATIENTS.owners, PATIENTS.days


def trainer_for(root):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    named = {"ids": "names", "subjects": "owners", "times": "days"}
    sisa = SISA(3, 2, record=root / "record", **named, outputs="values", key=KEY, seed=SEED)
    kept = [ModelCheckpoint(save_top_k=-1, save_last=True), ModelCheckpoint(root / "best", monitor="loss")]
    logger = CSVLogger(root / "logs")
    return lightning.Trainer(
        max_epochs=2, default_root_dir=root, logger=logger, callbacks=[*kept, Notes(), sisa], **quiet
    )


def module_for(seed=1):
    torch.manual_seed(seed)
    return Remembers()


def loader(rows):
    return DataLoader(rows, batch_size=6, shuffle=True)


def fit(root, rows):
    root.mkdir(exist_ok=True)
    trainer, module = trainer_for(root), module_for()
    trainer.fit(module, loader(rows))
    torch.save(answers(trainer, module), root / "answers.pt")


def answers(trainer, module):
    return torch.cat(trainer.predict(module, DataLoader(torch.utils.data.TensorDataset(PATIENTS.x), batch_size=30)))


KINDS = (
    *("ids", "rows", "loader", "subjects", "subjects", "missing", "missing", "duplicates", "duplicates", "before"),
    *("queued", "queued", "approximate", "approximate", "cancelled", "again", "dry run", "list", "fit", "declared"),
)


@dataclass
class Campaign:
    """The state of the world as its user knows it.

    Attributes:
        root: the trainer's root.
        chance: decides all that is random.
        gone: rows asked to be forgotten. deleted: rows that are not in the data set, any more or as yet.
        amended: rows whose targets changed. inexact: ids that were forgotten approximately.
        kills: how many processes were killed.
    """

    root: Path
    chance: random.Random
    gone: set = field(default_factory=set)
    deleted: set = field(default_factory=lambda: {*NEW})
    amended: set = field(default_factory=set)
    inexact: list = field(default_factory=list)
    kills: int = 0

    def draw(self, count):
        """Choose rows that are still trained on, and equal to no other."""
        free = [row for row in range(N) if row not in self.gone | self.deleted and row % 10 >= GROUPS]
        return sorted(self.chance.sample(free, count))

    def call(self, **asked):
        """Make a request in a new process, which may be killed some times at a random instant before."""
        work, longest = partial(self.serve, asked), 0.2
        while self.chance.random() < 0.6:
            child = fork(work)
            time.sleep(self.chance.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
            self.kills += status_of(child) == signal.SIGKILL
            longest *= 2
        in_process(work)

    def serve(self, asked):
        rows = self.data()
        if "forget" in asked:
            asked = asked | {"forget": DataLoader(Subset(rows, self.at(rows, asked["forget"])), batch_size=2)}
        if "rows" in asked:
            asked = asked | {"rows": self.at(rows, asked["rows"])}
        trainer, module = trainer_for(self.root), module_for(99)
        result = trainer.unlearn(model=module, train_dataloaders=loader(rows), **asked)
        if not asked.get("dry_run"):
            torch.save(answers(trainer, module), self.root / "answers.pt")
        return result

    def data(self):
        """Return the data set as it is now."""
        return Patients(self.deleted, self.amended)

    def opened(self):
        return closing(Record.open(self.root / "record", KEY))

    def at(self, rows, wanted):
        """Return where some rows are in the data set as it is now."""
        return [rows.names.index(NAMES[row]) for row in wanted]

    def make(self, kind):
        """Make one request."""
        getattr(self, "make_" + kind.replace(" ", "_"))()

    def make_ids(self):
        rows = self.draw(2)
        self.gone |= {*rows}
        self.call(ids=[NAMES[row] for row in rows])

    def make_rows(self):
        rows = self.draw(2)
        self.gone |= {*rows}
        self.call(rows=rows)

    def make_loader(self):
        rows = self.draw(3)
        self.gone |= {*rows}
        self.call(forget=rows)

    def make_subjects(self):
        person = PEOPLE[self.draw(1)[0]]
        self.forget_person(person)
        self.call(subjects=[person])

    def forget_person(self, person):
        """All rows of a person are forgotten, also those that might join later."""
        self.gone |= {row for row in range(N) if PEOPLE[row] == person}

    def make_missing(self):
        rows = self.draw(2)
        self.gone |= {*rows}
        self.deleted |= self.gone
        self.call(missing=True)

    def make_before(self):
        """A retention window ends: the two oldest rows go."""
        there = sorted({*range(N)} - self.gone - self.deleted)
        self.gone |= {*there[:2]}
        self.call(before=DAYS[there[2]])

    def make_queued(self):
        """Four rows and a person wait; two of the rows are amended, and three new rows join."""
        *asked, one, other = self.draw(4)
        person = PEOPLE[self.draw(1)[0]]
        with self.opened() as record:
            record.enqueue(ids=[NAMES[row] for row in asked])
            record.enqueue(subjects=[person])
            record.amend([NAMES[one], NAMES[other]])
            record.admit()
        self.gone |= {*asked}
        self.forget_person(person)
        self.amended |= {one, other}
        self.deleted -= {*[row for row in NEW if row in self.deleted - self.gone][:3]}
        self.call(queued=True)

    def make_approximate(self):
        """The rows are forgotten approximately, and exactly at once or in the end."""
        names = [NAMES[row] for row in self.draw(2)]
        self.gone |= {NAMES.index(name) for name in names}
        self.call(ids=names, method=Shrinking())
        self.inexact += names
        if self.chance.random() < 0.5:
            self.make_exact()

    def make_exact(self):
        if self.inexact:
            self.call(ids=self.inexact, guarantee="exact")
            self.inexact = []

    def make_duplicates(self):
        group = self.chance.randrange(GROUPS)
        rows = {group, group + 10, group + 20}
        if rows <= self.gone:
            return self.make_ids()
        asked = min(rows - self.gone)
        self.gone |= rows
        return self.call(ids=[NAMES[asked]], duplicates="forget")

    def make_cancelled(self):
        """A request is killed in training and withdrawn, so nobody is forgotten."""
        rows = self.draw(2)

        def stopped():
            KILL.at = self.chance.randint(1, 4)
            self.serve({"ids": [NAMES[row] for row in rows]})

        assert status_of(fork(stopped)) == signal.SIGKILL
        with self.opened() as record:
            record.cancel(record.requests[-1].number)

    def make_again(self):
        """A request that was served before has nothing left to do."""
        if self.gone:
            before = self.requests()
            self.call(ids=[NAMES[row] for row in sorted(self.gone)[:3]])
            assert self.requests() == before

    def make_dry_run(self):
        before = self.files()
        in_process(lambda: self.serve({"ids": [NAMES[self.draw(1)[0]]], "dry_run": True}))
        assert self.files() == before

    def make_list(self):
        """The checkpoints are left at first, and removed when the user has looked at them."""
        rows = self.draw(2)
        self.gone |= {*rows}
        self.call(ids=[NAMES[row] for row in rows], purge="list")
        with self.opened() as record:
            with pytest.raises(ErasureError):
                record.verify()
            assert record.settle()

    def make_fit(self):
        in_process(lambda: trainer_for(self.root).fit(module_for(5), loader(self.data())))

    def make_declared(self):
        with self.opened() as record:
            record.declare("consent", "every person was asked")

    def requests(self):
        with self.opened() as record:
            return [(request.number, request.state) for request in record.requests]

    def files(self):
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}


def patterns(campaign):
    """Return byte strings that stand for rows: inputs, targets, ids, persons, pseudonyms."""
    left = [row for row in range(N) if row not in campaign.gone | campaign.deleted]
    held = {content(row) for row in left}
    found = [content(row)[1] for row in campaign.amended]  # their new targets are other bytes
    for row in campaign.gone:
        found += [NAMES[row].encode(), reference.pseudonym(KEY, b"s:" + NAMES[row].encode())]
        if content(row) not in held:
            found += content(row)
        if PEOPLE[row] not in {PEOPLE[other] for other in left}:
            found += [PEOPLE[row].encode(), reference.subject(KEY, b"s:" + PEOPLE[row].encode())]
    return found


def content(row):
    """Return inputs and target of a row as bytes, as they were at first."""
    return PATIENTS.x[row].numpy().tobytes(), PATIENTS.y[row].numpy().tobytes()


def holding(root, needles):
    """Return the files below a folder that hold any of some byte strings, in their bytes or their paths."""
    named = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if any(needle in os.fsencode(path.relative_to(root)) for needle in needles)
    ]
    return sorted({*reference.files_holding(root, needles), *named})


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 12))])
def test_after_twenty_requests_with_kills_nothing_of_the_forgotten_is_left_and_the_bits_are_a_fits(seed, scratch):
    campaign = Campaign(scratch / "root", random.Random(seed))
    in_process(partial(fit, campaign.root, campaign.data()))
    there = {path.split("/")[0] for path in holding(campaign.root, [content(row)[0] for row in range(N)])}
    assert there == {"record", "logs", "best"}, "the search finds what is there"
    for kind in campaign.chance.sample(KINDS, len(KINDS)):
        campaign.make(kind)
    campaign.make_exact()
    assert campaign.kills > 5
    in_process(partial(fit, scratch / "twin", Patients(campaign.gone | campaign.deleted, campaign.amended)))
    assert_same_record(campaign.root, scratch / "twin")
    assert torch.equal(torch.load(campaign.root / "answers.pt"), torch.load(scratch / "twin" / "answers.pt"))
    assert set(dict(campaign.requests()).values()) == {"sealed", "cancelled"}
    assert holding(campaign.root, patterns(campaign)) == ["notes/patients.txt"]
