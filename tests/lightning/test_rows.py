"""Which rows a stage trains on, and which rows a request means."""

import shutil

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    random_split,
)

from pybrush.errors import ConfigurationError, ContentError, ForgetError, IdError, UnknownSamplesError
from pybrush.record import Record
from pybrush_lightning import SISA
from tests.lightning.models import Net, Noisy, Rows
from tests.lightning.test_bitwise import fitted
from tests.lightning.twin import CASES, KEY, trainer_for

SEEN = []
"""(epoch, position of each row of the batch, batches in the epoch) of every training step."""


class Watching(lightning.LightningModule):
    """Notes what reaches training_step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch):
        sampler = self.trainer.train_dataloader.batch_sampler
        assert len(sampler) == self.trainer.num_training_batches
        assert sampler.batch_size >= 1 and sampler.drop_last in (True, False)
        SEEN.append((self.trainer.current_epoch, batch.flatten().int().tolist(), len(sampler)))
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(Dataset):
    """Row i is the number i."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return torch.tensor([float(row)])


def steps_of(rows, size, drop_last, folder, slices=1, **trainer):
    """Fit and return what training_step saw."""
    SEEN.clear()
    sisa = SISA(1, slices, record=folder / f"{rows}-{size}-{drop_last}-{slices}", key=KEY, seed=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    own = lightning.Trainer(max_epochs=2, callbacks=[sisa], enable_checkpointing=False, **quiet, **trainer)
    own.fit(Watching(), DataLoader(Numbers(rows), batch_size=size, shuffle=True, drop_last=drop_last))
    return list(SEEN)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_every_row_of_a_stage_comes_exactly_once_an_epoch(size, drop_last, tmp_path):
    for rows in range(2, 3 * size + 2):
        seen = steps_of(rows, size, drop_last, tmp_path)
        whole = rows - rows % size if drop_last and rows >= size else rows
        for epoch in (0, 1):
            batches = [batch for at, batch, _ in seen if at == epoch]
            together = sorted(row for batch in batches for row in batch)
            assert len(together) == len(set(together)) == whole, (rows, batches)
            assert set(together) <= set(range(rows))
            assert {count for at, _, count in seen if at == epoch} == {len(batches)}
            assert size == 1 or all(len(batch) > 1 for batch in batches)


def test_later_slices_see_the_rows_of_the_earlier_ones_and_their_epochs_count_on(tmp_path):
    seen = steps_of(13, 4, False, tmp_path, slices=2)
    rows_by_epoch = [sorted(row for at, batch, _ in seen if at == epoch for row in batch) for epoch in range(4)]
    assert rows_by_epoch[0] == rows_by_epoch[1] and len(set(rows_by_epoch[0])) == len(rows_by_epoch[0]) < 13
    assert rows_by_epoch[2] == rows_by_epoch[3] == list(range(13))
    orders = [[row for at, batch, _ in seen if at == epoch for row in batch] for epoch in range(4)]
    assert orders[2] != orders[3] and orders[0] != orders[1]


# Ways to say which rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A record of Rows named by content, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    fitted("momentum", folder)
    return folder


ROWS = Rows()
HALVES = random_split(ROWS, [30, 14], generator=torch.Generator().manual_seed(0))
FOREIGN = TensorDataset(ROWS.x[[3, 20]].clone(), ROWS.y[[3, 20]].clone())
EMPTY = Subset(ROWS, [])

WAYS = {
    "rows as a tensor": {"rows": torch.tensor([3, 20])},
    "a subset": {"forget": Subset(ROWS, [20, 3])},
    "a subset of a subset": {"forget": Subset(Subset(ROWS, [3, 4, 20]), [0, 2])},
    "a loader of a subset": {"forget": DataLoader(Subset(ROWS, [3, 20]), batch_size=1)},
    "a shuffled loader": {"forget": DataLoader(Subset(ROWS, [3, 20]), batch_size=2, shuffle=True)},
    "joined subsets": {"forget": ConcatDataset([Subset(ROWS, [3]), Subset(ROWS, [20])])},
    "another data set with the same rows": {"forget": FOREIGN},
    "a list of rows": {"forget": [ROWS[3], ROWS[20]]},
    "a subset of another data set": {"forget": Subset(Rows(), [3, 20])},
}


def request(folder, tmp_path, **ask):
    """Serve a request on a copy of a record; return result and the names that are left."""
    shutil.copytree(folder / "record", tmp_path / "record")
    case = CASES["momentum"]
    trainer = trainer_for(case, tmp_path)
    result = trainer.unlearn(model=Net(), train_dataloaders=DataLoader(ROWS, batch_size=5, shuffle=True), **ask)
    record = Record.open(tmp_path / "record", KEY)
    return result, {name.tobytes() for name in record.samples().names}


def names_without(gone, record):
    roster = SISA(record=record, key=KEY).naming.roster(Rows(gone), Record.open(record, KEY).names)
    return {name.tobytes() for name in roster.names}


@pytest.mark.parametrize("way", WAYS)
def test_a_request_means_the_same_rows_however_they_are_given(way, trained, tmp_path):
    result, left = request(trained, tmp_path, **WAYS[way])
    assert result.forgotten == 2
    assert left == names_without([3, 20], tmp_path / "record")


def test_halves_of_a_random_split_are_found_in_each_other(tmp_path):
    train, _ = HALVES
    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Net(), DataLoader(train, batch_size=5, shuffle=True))
    result = trainer.unlearn(Subset(ROWS, train.indices[:3]))
    assert result.forgotten == 3
    with pytest.raises(UnknownSamplesError, match="14 of 14"):
        trainer.unlearn(HALVES[1])


def test_rows_of_a_part_of_joined_training_data_are_found(tmp_path):
    parts = Rows(rows=20), Rows(rows=20, seed=4)
    trainer = trainer_for(CASES["momentum"], tmp_path)
    trainer.fit(Net(), DataLoader(ConcatDataset(parts), batch_size=5, shuffle=True))
    assert trainer.unlearn(Subset(parts[1], [0, 7])).forgotten == 2


REFUSED = {
    "an empty set": ({"forget": EMPTY}, ForgetError, "empty"),
    "strangers": ({"forget": Rows(seed=8)}, UnknownSamplesError, "44 of 44"),
    "some strangers": ({"forget": [ROWS[1], (torch.zeros(6), torch.tensor(1))]}, UnknownSamplesError, "1 of 2"),
    "inputs without labels": ({"forget": [ROWS[1][0]]}, UnknownSamplesError, "1 of 1"),
    "a loader that leaves out rows": (
        {"forget": DataLoader(ROWS, sampler=SubsetRandomSampler([3]))}, ConfigurationError, "SubsetRandomSampler"
    ),
    "a number": ({"forget": 3}, ConfigurationError, "int"),
    "all rows": ({"forget": ROWS}, ForgetError, "nothing is left"),
}  # fmt: skip


@pytest.mark.parametrize("way", REFUSED)
def test_what_names_no_recorded_row_for_certain_is_refused_and_leaves_no_request(way, trained, tmp_path):
    ask, error, match = REFUSED[way]
    with pytest.raises(error, match=match):
        request(trained, tmp_path, **ask)
    record = Record.open(tmp_path / "record", KEY)
    assert record.requests == ()
    record.verify()


# Names that cannot work


def test_data_that_changes_between_readings_is_found_at_the_first_fit(tmp_path):
    with pytest.raises(ContentError, match=r"32 of 32 samples differ .*content='off'"):
        trainer_for(CASES["momentum"], tmp_path).fit(Net(), DataLoader(Noisy(), batch_size=5, shuffle=True))
    assert not (tmp_path / "record" / "ledger.sqlite").exists()


def test_a_column_that_is_not_there_is_refused(tmp_path):
    trainer = trainer_for(CASES["momentum"], tmp_path, sisa={"ids": "no_such_column"})
    with pytest.raises(IdError):
        trainer.fit(Net(), DataLoader(ROWS, batch_size=5, shuffle=True))


def test_ids_may_be_a_column_a_sequence_a_callable_or_positions(tmp_path):
    for number, ids in enumerate(["names", ROWS.names, lambda rows: [name + "!" for name in rows.names], "position"]):
        trainer = trainer_for(CASES["momentum"], tmp_path / str(number), sisa={"ids": ids})
        trainer.fit(Net(), DataLoader(ROWS, batch_size=5, shuffle=True))
        assert trainer.unlearn(Subset(ROWS, [3, 20])).forgotten == 2
        record = Record.open(tmp_path / str(number) / "record", KEY)
        assert record.samples().rows == 42


def test_a_column_below_a_subset_is_found(tmp_path):
    part = Subset(ROWS, range(10, 44))
    trainer = trainer_for(CASES["momentum"], tmp_path, sisa={"ids": "names", "subjects": "owners"})
    trainer.fit(Net(), DataLoader(part, batch_size=5, shuffle=True))
    assert trainer.unlearn(ids=[ROWS.names[12]]).forgotten == 1
    assert trainer.unlearn(subjects=[ROWS.owners[14]]).forgotten == 3
