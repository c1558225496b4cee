"""Steps, epochs, batches and validation are limited in each stage as Lightning limits a whole training."""

import logging

import lightning
import pytest
import torch
from lightning.pytorch import callbacks as library

from pybrush.errors import FingerprintError
from pybrush.record import Record
from tests.lightning.models import Data, Drawing, Net, Rows, Validated
from tests.lightning.special import Changing, ValidatedByEpoch
from tests.lightning.test_bitwise import assert_as_if_never_seen, fitted
from tests.lightning.test_refusals import leftovers, loader
from tests.lightning.twin import CASES, KEY, Case, answers, data_for, forget, module_for, trainer_for

OWN = {
    "max_epochs": 9, "max_steps": 99, "min_steps": 3, "min_epochs": 2, "limit_train_batches": 0.9,
    "limit_val_batches": 0.5, "val_check_interval": 0.5, "check_val_every_n_epoch": 3,
    "reload_dataloaders_every_n_epochs": 4,
}  # fmt: skip


def quiet(folder, **settings):
    shown = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(**shown, enable_checkpointing=False, default_root_dir=folder, **settings)


def manifests(folder):
    record = Record.open(folder / "record", KEY)
    return [(stage, record.store.manifest(stage.key)) for stage in record.graph()]


def batches_of(rows):
    """Batches of five, where a last one of a single row is folded into the one before it."""
    return -(-rows // 5) - (rows % 5 == 1)


TURNS = []


class Following(library.Callback):
    """Notes each turn of a training, where no stage rewinds it; what validates before it does not count."""

    def __init__(self):
        TURNS.clear()

    @property
    def seen(self):
        return list(TURNS)

    def on_train_start(self, trainer, pl_module):
        self.note("start", trainer)

    def on_train_epoch_start(self, trainer, pl_module):
        self.note("epoch", trainer)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.note("step", trainer)

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.note("validation", trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self.note("epoch end", trainer)

    def on_train_end(self, trainer, pl_module):
        self.note("end", trainer)

    def note(self, what, trainer):
        where = trainer.current_epoch, trainer.global_step, trainer.accumulate_grad_batches
        TURNS.append((what, *where, trainer.max_epochs, trainer.max_steps))


def impatient(**settings):
    return {"callbacks": [lambda: library.EarlyStopping("val_loss", patience=1, min_delta=5.0)], **settings}


ALONE = {
    "max_steps": {"max_steps": 13},
    "max_steps, no epochs": {"max_steps": 13, "max_epochs": None},
    "max_steps, endless epochs": {"max_steps": 13, "max_epochs": -1},
    "max_steps, too many": {"max_steps": 1000},
    "max_steps and accumulation": {"max_steps": 5, "accumulate_grad_batches": 4},
    "min_steps": impatient(min_steps=25),
    "min_epochs": impatient(min_epochs=3),
    "both": impatient(min_epochs=3, min_steps=31),
    "neither": impatient(),
    "limit_train_batches": {"limit_train_batches": 4},
    "limit_train_batches, one": {"limit_train_batches": 1},
    "limit_train_batches, too many": {"limit_train_batches": 100},
    "limit_train_batches, a share": {"limit_train_batches": 0.5},
    "val_check_interval": {"val_check_interval": 4},
    "val_check_interval, one": {"val_check_interval": 1},
    "val_check_interval, a share": {"val_check_interval": 0.3},
    "val_check_interval, all epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "check_val_every_n_epoch": {"check_val_every_n_epoch": 2},
    "limit_val_batches": {"limit_val_batches": 0},
    "reload_dataloaders_every_n_epochs": {"reload_dataloaders_every_n_epochs": 1},
    "GradientAccumulationScheduler": {"callbacks": [lambda: library.GradientAccumulationScheduler({1: 2, 3: 4})]},
}
"""What a plain trainer does with 44 rows in 9 batches, for five epochs unless it says otherwise."""


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("name", ALONE)
def test_one_shard_in_one_slice_takes_every_turn_of_a_plain_trainer(name, tmp_path):
    settings = {"max_epochs": 5, **ALONE[name]}
    more = settings.pop("callbacks", [])
    case, turns = Case(Validated, shards=1, slices=1, validation=True), []
    for make in (quiet, lambda folder, **settings: trainer_for(case, folder, **settings)):
        following = Following()
        trainer = make(tmp_path, callbacks=[following, *(callback() for callback in more)], **settings)
        trainer.fit(Validated(), **data_for(case))
        turns.append(following.seen)
    assert turns[0] == turns[1]
    assert turns[0][-1][0] == "end"


def test_each_slice_makes_its_share_of_the_steps_and_the_trainer_says_where_it_ends(tmp_path):
    following, case = Following(), Case(slices=3, trainer={"max_steps": 14, "max_epochs": None})
    trainer = trainer_for(case, tmp_path, callbacks=[following])
    trainer.fit(Net(), **data_for(case))
    assert [manifest.steps for _, manifest in manifests(tmp_path)] == [5] * 6
    starts = [turn for turn in following.seen if turn[0] == "start"]
    # ceil(2 * 14 / 4) = 7 epochs are planned for each slice, of which few are needed.
    assert starts == [("start", 7 * r, 5 * r, 1, -1, 5 * (r + 1)) for _ in range(2) for r in range(3)]
    assert (trainer.max_epochs, trainer.max_steps, trainer.global_step) == (-1, 14, 15)
    trainer.unlearn(rows=[3])
    assert (trainer.max_epochs, trainer.max_steps, trainer.global_step) == (-1, 14, 15)
    assert leftovers(trainer) == set()


def test_a_slice_ends_by_its_epochs_where_they_come_first(tmp_path):
    case = Case(epochs=3, trainer={"max_steps": 15})
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    for stage, manifest in manifests(tmp_path):
        assert manifest.steps == min(2 * batches_of(stage.rows), 8)
    assert len({manifest.steps for _, manifest in manifests(tmp_path)}) > 1


def test_a_share_of_the_batches_is_one_at_least_in_every_slice(tmp_path):
    case = Case(slices=3, trainer={"limit_train_batches": 0.3})
    trainer = trainer_for(case, tmp_path)
    trainer.fit(Net(), **data_for(case))
    batches = [batches_of(stage.rows) for stage, _ in manifests(tmp_path)]
    assert [manifest.steps for _, manifest in manifests(tmp_path)] == [max(1, int(0.3 * count)) for count in batches]
    assert 0 in [int(0.3 * count) for count in batches] and trainer.limit_train_batches == 0.3


def test_least_epochs_and_steps_are_cut_into_slices_like_the_most(tmp_path):
    following = Following()
    case = Case(Validated, shards=1, validation=True, epochs=9)  # six epochs a slice
    stop = library.EarlyStopping("val_loss", patience=1, min_delta=5.0)
    trainer = trainer_for(case, tmp_path, min_epochs=6, callbacks=[following, stop])  # four of them at least
    trainer.fit(Validated(), **data_for(case))
    assert [turn[1] for turn in following.seen if turn[0] == "epoch"] == [0, 1, 2, 3, 6, 7, 8, 9]
    other = tmp_path / "steps"
    trainer_for(case, other, min_steps=45, callbacks=[stop]).fit(Validated(), **data_for(case))
    assert [manifest.steps for _, manifest in manifests(other)] == [23, 23]


@pytest.mark.parametrize("limit", [1.0, 2])
def test_validation_after_more_batches_than_a_slice_has_comes_at_its_epochs_end(limit, tmp_path):
    following, case = Following(), Case(Validated, validation=True, trainer={"val_check_interval": 5})
    trainer = trainer_for(case, tmp_path, limit_train_batches=limit, callbacks=[following])
    trainer.fit(Validated(), **data_for(case))
    batches = [batches_of(stage.rows) for stage, _ in manifests(tmp_path)]
    assert min(batches) < 5 <= max(batches)
    # Two epochs a slice, each with its validations.
    assert len([turn for turn in following.seen if turn[0] == "validation"]) == 2 * len(batches)
    assert trainer.val_check_interval == 5


@pytest.mark.filterwarnings("ignore:.*max_epochs. was not set")
def test_without_any_limit_lightnings_thousand_epochs_are_planned(tmp_path):
    class Short(Net):
        def on_train_epoch_start(self):
            self.trainer.should_stop = True

    case = Case(slices=1, trainer={"max_epochs": None})
    trainer_for(case, tmp_path).fit(Short(), **data_for(case))
    assert Record.open(tmp_path / "record", KEY).plan.epochs == 1000


@pytest.mark.parametrize(
    "name",
    [
        "steps and no epochs",
        "at least some epochs in slices",
        pytest.param("at least some steps", marks=pytest.mark.long),
        pytest.param("a few batches", marks=pytest.mark.long),
        pytest.param("a share of the batches", marks=pytest.mark.long),
        pytest.param("validation after batches", marks=pytest.mark.long),
        "validation after batches of all epochs",
        "reloaded validation",
        "early stop in slices",
        "double precision",
        "true half precision",
        "two optimizers by hand in slices",
    ],
)
def test_another_process_serves_under_the_recorded_limits_and_keeps_its_own(name, tmp_path, fresh_process):
    fitted(name, tmp_path)
    after = fresh_process.ask("unlearn", name=name, folder=tmp_path, gone=[3, 20], settings=OWN)
    assert after == OWN | {"current_epoch": Record.open(tmp_path / "record", KEY).plan.epochs, "forgotten": 2}
    now = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert_as_if_never_seen(name, tmp_path, fresh_process, now, [3, 20])


@pytest.mark.parametrize("own", [{"max_epochs": None}, {"max_epochs": 0, "limit_train_batches": 0}])
def test_limits_under_which_nothing_could_be_trained_do_not_matter_to_a_request(own, tmp_path):
    fitted("steps in slices", tmp_path)
    trainer = trainer_for(CASES["momentum"], tmp_path, **own)
    assert trainer.unlearn(rows=[3], model=Net(), train_dataloaders=loader()).forgotten == 1
    assert {name: getattr(trainer, name) for name in own} == own


CHANGED = {
    "max_steps": 11, "min_steps": 1, "min_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1,
    "val_check_interval": 1, "check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_fit_under_another_limit_is_another_training(name, tmp_path):
    fitted("momentum", tmp_path)
    again = trainer_for(CASES["momentum"], tmp_path, **{name: CHANGED[name]})
    with pytest.raises(FingerprintError, match=rf"trainer\.{name}"):
        again.fit(Net(), loader())


def test_epochs_without_a_limit_are_not_those_of_a_limit(tmp_path):
    case = Case(slices=1, trainer={"max_steps": 12, "max_epochs": None})
    trainer_for(case, tmp_path).fit(Net(), **data_for(case))
    again = trainer_for(case, tmp_path, max_epochs=12)
    with pytest.raises(FingerprintError, match=r"trainer\.epochs_unlimited"):
        again.fit(Net(), **data_for(case))


# Data that is asked for again


class Counting(Changing):
    """Counts how often its loaders are asked for, and where."""

    def __init__(self, make, loader):
        super().__init__(make, loader)
        self.asked, self.validated = 0, []

    def train_dataloader(self):
        self.asked += 1
        return super().train_dataloader()

    def val_dataloader(self):
        self.validated.append(self.trainer.current_epoch)
        return super().val_dataloader()


def test_reloading_asks_for_validation_data_alone_and_says_so_once(tmp_path, caplog):
    asked = []
    for every in (0, 2):
        case = Case(epochs=3, trainer={"reload_dataloaders_every_n_epochs": every})
        data = Counting(Rows, {"batch_size": 5, "shuffle": True})
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pybrush_lightning"):
            trainer_for(case, tmp_path / str(every)).fit(ValidatedByEpoch(), datamodule=data)
        asked.append(data)
        assert [r.message[:32] for r in caplog.records] == ["reload_dataloaders_every_n_epoch"] * bool(every)
    assert asked[0].asked == asked[1].asked
    # Four epochs in a shard: asked at the start of each slice, of two epochs, and by the fit before.
    assert asked[1].validated[-4:] == [0, 2, 0, 2]
    assert len(asked[0].validated) < len(asked[1].validated)


def test_what_loading_validation_data_draws_moves_no_training(tmp_path, fresh_process):
    class Loading(Data):
        def val_dataloader(self):
            torch.rand(self.draws)
            return loader(Rows(rows=12, seed=9), shuffle=False)

    class Both(Validated, Drawing):
        pass

    module = Both()
    initial = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for draws in (1, 7):
        case = Case(trainer={"num_sanity_val_steps": 0})
        module, data = Both(), Loading(Rows, {"batch_size": 5, "shuffle": True})
        module.load_state_dict(initial)
        data.draws = draws
        trainer_for(case, tmp_path / str(draws)).fit(module, datamodule=data)
    one, other = (
        {(stage.shard, stage.slice): manifest.sha256 for stage, manifest in manifests(tmp_path / str(draws))}
        for draws in (1, 7)
    )
    assert one == other


# Callbacks that steer


class Watching(library.EarlyStopping):
    """Notes with what patience and best score a stage begins."""

    def __init__(self):
        super().__init__("val_loss", patience=1, min_delta=5.0)
        self.seen = []

    def on_train_start(self, trainer, pl_module):
        self.seen.append((self.wait_count, float(self.best_score), self.stopped_epoch, self.stopping_reason.name))


def test_early_stopping_begins_anew_in_each_slice_and_stopped_slices_count_in_full(tmp_path):
    watching, following = Watching(), Following()
    case = Case(Validated, shards=1, slices=3, epochs=6, validation=True)  # three epochs a slice
    trainer = trainer_for(case, tmp_path, callbacks=[watching, following])
    trainer.fit(Validated(), **data_for(case))
    assert watching.seen == [(0, float("inf"), 0, "NOT_STOPPED")] * 3
    assert [turn[1] for turn in following.seen if turn[0] == "epoch"] == [0, 1, 3, 4, 6, 7]
    states = [Record.open(tmp_path / "record", KEY).store.load(stage.key)[0] for stage, _ in manifests(tmp_path)]
    held = [state["callbacks"]["Watching.0"]["state"] for state in states]
    assert [(state["wait_count"], state["stopped_epoch"]) for state in held] == [(1, 1), (1, 4), (1, 7)]
    assert len({float(state["best_score"]) for state in held}) == 3


def test_accumulation_by_schedule_leaves_the_trainers_own_number(tmp_path):
    trainer, module = fitted("accumulation by schedule", tmp_path)
    assert trainer.accumulate_grad_batches == 1
    trainer.unlearn(rows=[3])
    assert trainer.accumulate_grad_batches == 1
    trainer.fit(module, **data_for(CASES["momentum"]))
    # Epochs 0, 1 one batch a step, 2 to 5 three of them; a schedule goes on through the slices.
    for stage, manifest in manifests(tmp_path):
        count = batches_of(stage.rows)
        steps = [count if epoch < 2 else -(-count // 3) for epoch in range(3 * stage.slice, 3 * stage.slice + 3)]
        assert manifest.steps == sum(steps)


# Precision


@pytest.mark.parametrize(
    ("name", "dtype"), [("double precision", torch.float64), ("true half precision", torch.bfloat16)]
)
def test_a_new_process_reads_true_precision_without_rounding(name, dtype, tmp_path):
    case = CASES[name]
    trainer, module = fitted(name, tmp_path)
    expected = answers(trainer, module)
    inputs = Rows(seed=3).x.to(dtype)
    fresh = Net()
    record = Record.open(tmp_path / "record", KEY)
    both = record.aggregate(fresh)
    assert {p.dtype for p in both.parameters()} == {dtype} and {p.dtype for p in fresh.parameters()} == {torch.float32}
    assert torch.equal(both(inputs), expected)
    later = trainer_for(case, tmp_path)
    forget(case, later, [3], model=fresh, **data_for(case))
    # Nothing is trained the second time, so that the trainer converts nothing.
    last = Net()
    result = forget(case, trainer_for(case, tmp_path), [3], model=last, **data_for(case))
    assert result.cost.stages_rebuilt == 0
    assert {p.dtype for p in last.parameters()} == {p.dtype for p in result.model.parameters()} == {dtype}
    assert torch.equal(result.model(inputs), answers(later, fresh))


# Optimizers stepped by hand


def test_steps_by_hand_are_counted_through_the_slices(tmp_path):
    name, following = "two optimizers by hand", Following()
    case = CASES[name]
    module = module_for(case, tmp_path / "initial.pt")
    trainer = trainer_for(case, tmp_path, sisa={"slices": 2}, callbacks=[following])
    trainer.fit(module, **data_for(case))
    steps = [manifest.steps for _, manifest in manifests(tmp_path)]
    assert steps == [2 * 2 * batches_of(stage.rows) for stage, _ in manifests(tmp_path)]
    starts = [turn[2] for turn in following.seen if turn[0] == "start"]
    assert starts == [0, steps[0], 0, steps[2]]
    assert trainer.global_step == steps[2] + steps[3]
