"""Random numbers and state beside the record: what breaks the equality of bits is refused or named, the rest is let be.

Which of these trainings differ from a fresh one was tried out; those that do not must pass without a word.
"""

import random
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from pybrush.content import encode
from pybrush.errors import ContentError, TrainingError
from pybrush.hidden import Hidden, check_generators, found_changed
from pybrush.readings import check_seeded
from pybrush.record import Record
from pybrush_lightning.kinds import KINDS, parts_of
from pybrush_lightning.randomness import RANDOMNESS
from tests.lightning.models import Net, Noisy, Pushing, Rows
from tests.lightning.twin import KEY, Case, trainer_for
from tests.lightning.untouched import by_fit, module_state, random_state
from tests.untouched import untouched

UNCOMPARED, COMPARED = {"ids": "names", "content": "off"}, {"ids": "names"}

a_generator = np.random.default_rng(0)


def plain(dataset):
    return lambda position: encode(dataset[position])


class Changing(Rows):
    """Rows that a function of the data set changes."""

    def __init__(self, change, **held):
        super().__init__()
        self.change = change
        vars(self).update(held)

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return self.change(self, row, x), y


def kept(data, row, x):
    if row not in data.cache:
        data.cache[row] = x + torch.randn(6)
    return data.cache[row]


OWN = {
    "a generator of NumPy": lambda: Changing(lambda d, r, x: x + d.own.normal(), own=np.random.default_rng(0)),
    "a generator of torch": lambda: Changing(lambda d, r, x: x + torch.rand(6, generator=d.own), own=torch.Generator()),
    "rows that are changed in place": lambda: Changing(lambda d, r, x: x.mul_(0.99)),
    "kept random numbers": lambda: Changing(kept, cache={}),
}


WRAPPED = [lambda d: d, lambda d: Subset(d, range(40)), lambda d: ConcatDataset([d, Rows()])]


@pytest.mark.parametrize("kind", OWN)
def test_rows_that_do_not_depend_on_their_place_and_the_global_generators_alone_are_refused(kind):
    before = random_state()
    said = "drew when they were first" if "kept" in kind else "global generators of random, numpy and torch, which"
    for wrapped in WRAPPED:
        with pytest.raises(ContentError, match=said):
            check_seeded(wrapped(OWN[kind]()), plain, RANDOMNESS, parts_of)
    assert random_state() == before


class Compose:
    """As in torchvision."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x


class RandomFlip(torch.nn.Module):
    """As in torchvision: draws from torch."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x.flip(0) if torch.rand(1) < self.p else x


def jitter(x):
    return x * random.uniform(0.8, 1.2) + np.random.normal(0, 0.1)  # noqa: NPY002


AUGMENTED = Compose(RandomFlip(), jitter)
HARMLESS = {
    "plain rows": Rows,
    "augmentation": Noisy,
    "transforms as in torchvision": lambda: Changing(lambda d, r, x: d.transform(x), transform=AUGMENTED),
    "rows that are kept": lambda: Changing(lambda d, r, x: d.cache.setdefault(r, x * 2), cache={}),
    "kept rows that are augmented afterwards": lambda: Changing(
        lambda d, r, x: d.cache.setdefault(r, x * 2) + torch.randn(6), cache={}
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
def test_rows_that_draw_from_the_global_generators_or_not_at_all_pass(kind):
    for wrapped in WRAPPED:
        check_seeded(wrapped(HARMLESS[kind]()), plain, RANDOMNESS, parts_of)


# Variables of functions and classes

a_torch_generator, a_tensor = torch.Generator().manual_seed(0), torch.zeros(3)
count = 0


def counting():
    global count
    count += 1


def of_a_tensor():
    a_tensor[1] += 1


def test_a_tensor_that_is_changed_in_place_is_found_by_its_name():
    hidden = Hidden([("root", of_a_tensor)], KINDS)
    before = hidden.values()
    assert found_changed(before, hidden.values()) == []
    of_a_tensor()
    (found,) = found_changed(before, hidden.values())
    assert found["name"] == f"hidden-state:global a_tensor of {__name__}"


def test_a_generator_of_torch_that_went_on_is_refused_by_name():
    def draws():
        return torch.rand(1, generator=a_torch_generator)

    hidden = Hidden([("root", draws)], KINDS)
    before = hidden.generators()
    check_generators(before, hidden.generators(), RANDOMNESS)
    draws()
    with pytest.raises(TrainingError, match=r"global a_torch_generator of .* random, numpy and torch"):
        check_generators(before, hidden.generators(), RANDOMNESS)


def test_the_global_generators_are_no_find():
    root = [lambda: torch.rand(1, generator=torch.default_generator), lambda: random.random(), np.random.rand]
    hidden = Hidden([("root", root)], KINDS)
    before = hidden.generators()
    torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    check_generators(before, hidden.generators(), RANDOMNESS)


# In a training


class DrawsItsOwn(Net):
    """Draws from a generator of its file."""

    def training_step(self, batch, index):
        return super().training_step(batch, index) * (1 + 0.1 * a_generator.random())


class Shuffles(Net):
    """Puts the rows of the data set into another order."""

    def on_train_epoch_end(self):
        data = self.trainer.train_dataloader.dataset
        order = torch.randperm(len(data.y))
        data.x, data.y = data.x[order], data.y[order]


class TellsTheEpoch(Net):
    """Lets the data set know."""

    def on_train_epoch_start(self):
        self.trainer.train_dataloader.dataset.epoch = self.current_epoch


class ByEpoch(Rows):
    """Rows that depend on what the data set was told."""

    epoch = 0

    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return x * (1 + 0.1 * self.epoch), y


class Counts(Net):
    """Counts its steps beside itself, and lets that steer training."""

    def training_step(self, batch, index):
        counting()
        return super().training_step(batch, index) * (1 + 1e-3 * count)


def loader(rows):
    return DataLoader(rows, batch_size=5, shuffle=True)


def test_a_data_set_with_a_generator_of_its_own_is_refused_before_there_is_a_record(tmp_path):
    trainer, module = trainer_for(Case(sisa=UNCOMPARED), tmp_path), Net()
    with by_fit(trainer, module, tmp_path), pytest.raises(ContentError, match="global generators of random, numpy"):
        trainer.fit(module, loader(OWN["a generator of NumPy"]()))


TRAININGS = {
    "a generator of its file": (
        DrawsItsOwn,
        Rows,
        "drew from global a_generator of DrawsItsOwn.training_step",
    ),
    "shuffled rows": (Shuffles, Rows, "rows of the training data are others"),
    "rows by epoch": (TellsTheEpoch, ByEpoch, "rows of the training data are others"),
}


@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_that_leaves_something_to_later_stages_ends_with_the_first_one(kind, tmp_path):
    make, rows, said = TRAININGS[kind]
    trainer, module = trainer_for(Case(sisa=UNCOMPARED), tmp_path), make()
    kept = untouched(read=lambda: module_state(module) | random_state())
    with kept, pytest.raises(TrainingError, match=said):
        trainer.fit(module, loader(rows()))
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        assert record.store.keys() == set()


def told(result):
    return {a.name: a for a in result.guarantee.assumptions if a.name.startswith("hidden-state:")}


def test_a_variable_that_training_changed_is_named_in_every_guarantee_until_it_is_declared(tmp_path):
    case = Case(sisa=COMPARED, callbacks=(Pushing,))
    trainer_for(case, tmp_path).fit(Counts(), loader(Rows()))
    later = trainer_for(case, tmp_path)
    found = told(later.unlearn(rows=[3], model=Counts(), train_dataloaders=loader(Rows())))
    name = f"hidden-state:global count of {__name__}"
    assert list(found) == [name] and (found[name].how, found[name].holds) == ("declared", "unknown")
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        record.declare(name, "it is printed and nothing else")
        assert record.verify().is_clean
    assert told(later.unlearn(rows=[20]))[name].holds == "yes"


def test_a_plain_training_with_augmentation_has_nothing_to_name(tmp_path):
    trainer = trainer_for(Case(sisa=UNCOMPARED), tmp_path)
    trainer.fit(Net(), loader(Changing(lambda d, r, x: AUGMENTED(x))))
    assert told(trainer.unlearn(rows=[3])) == {}
