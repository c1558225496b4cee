"""Replay in Keras: every training replays to its bits, what was forged does not, and nobody's objects change."""

from contextlib import closing

import keras
import numpy as np
import pytest

from pybrush import Record, Tolerance
from pybrush.errors import ConfigurationError, FingerprintError, MissingRowsError
from pybrush_keras import SISA, replay
from pybrush_keras._private import internal_attributes
from pybrush_keras.patches import mark_of
from tests.core.forging import contents, forge
from tests.keras import nets
from tests.keras.twin import CASES, KEY, chosen, data_of, fit, ids_of
from tests.untouched import untouched

EXACT = Tolerance(absolute=0, relative=0)
SHORT = ("plain", "functional", "own step", "texts", "scaled", "stopping", "counting", "thawing")
"""Cases that every run of the tests replays; the others wait for the long one."""

RUN = [
    pytest.param(name, marks=[] if name in SHORT else [pytest.mark.long])
    for name, case in CASES.items()
    if chosen(case)
]


@pytest.fixture(autouse=True)
def _floats():
    yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("name", RUN)
def test_every_stage_of_every_training_replays_to_the_same_bits_here_and_where_nothing_was_fitted(name, tmp_path):
    case = CASES[name]
    _, sisa, data = fit(name, tmp_path)
    before = contents(tmp_path)
    found = replay(sisa, stages="all", tolerance=EXACT)
    assert len(found.stages) == found.of == case.shards * case.slices
    outcomes = {(stage.outcome, stage.places, stage.environment) for stage in found.stages}
    assert outcomes == {("bit_identical", (), ())}

    keras.utils.set_random_seed(99)
    other = SISA(record=tmp_path / "record", key=KEY, ids=ids_of(case))
    extra = {name: value for name, value in case.fit.items() if name in ("validation_split", "validation_data")}
    own = [make() for make in case.callbacks]
    found = replay(other, model=case.model(), **data, **extra, callbacks=own, verbose=0, stages="all", tolerance=EXACT)
    assert found.outcome == "bit_identical"
    assert contents(tmp_path) == before


def test_after_a_request_what_it_rebuilt_is_replayed(tmp_path):
    _, sisa, _ = fit("plain", tmp_path)
    result = sisa.unlearn(rows=[3])
    found = replay(sisa)
    assert found.outcome == "bit_identical" and len(found.stages) == result.cost.stages_rebuilt < found.of


class Following(keras.callbacks.Callback):
    """Lets the learning rate follow what is found in the validation."""

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" in logs:
            self.model.optimizer.learning_rate = 0.1 * logs["val_loss"]


def test_what_is_validated_and_when_is_the_records_as_well(tmp_path):
    data, seen = nets.table(), {"validation_data": tuple(nets.table(20, seed=9).values())}
    sisa, often = SISA(record=tmp_path / "record"), {"validation_freq": 2, "validation_batch_size": 7}
    nets.plain().fit(**data, **seen, **often, batch_size=5, epochs=4, verbose=0, callbacks=[Following(), sisa])
    given = {"model": nets.plain(), **data, **seen, "callbacks": [Following()], "verbose": 0}
    assert replay(SISA(record=tmp_path / "record"), **given, stages="all", tolerance=EXACT).outcome == "bit_identical"


class Busy(keras.callbacks.Callback):
    """Evaluates, saves and exports the model while it trains; fails where it is told to."""

    fails = False

    def __init__(self, folder):
        super().__init__()
        self.folder = str(folder)

    def on_epoch_end(self, epoch, logs=None):
        self.model.evaluate(*nets.table().values(), verbose=0)
        self.model.save(f"{self.folder}/whole-{epoch}.keras")
        self.model.save_weights(f"{self.folder}/{epoch}.weights.h5")
        if Busy.fails:
            raise ArithmeticError("on purpose")


def watching(folder):
    """Return callbacks that write of a training in every way that Keras has, and one that steers it."""
    made = keras.callbacks
    return [
        made.ModelCheckpoint(folder / "saved" / "{epoch}.weights.h5", save_weights_only=True),
        made.ModelCheckpoint(folder / "best.keras", monitor="loss", save_best_only=True),
        made.BackupAndRestore(folder / "backup", delete_checkpoint=False),
        made.CSVLogger(folder / "log.csv", append=True),
        made.TensorBoard(folder / "board"),
        made.History(),
        made.ReduceLROnPlateau(monitor="loss", patience=1, factor=0.5),
        Busy(folder),
    ]


def held(model, callbacks):
    """Return what of the user's objects must be as it was."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        "values": [keras.ops.convert_to_numpy(variable).tolist() for variable in variables],
        "history": getattr(model, "history", None),
        "stopped": getattr(model, "stop_training", None),
        "mark": mark_of(model),
        "attributes": sorted(vars(model).keys() - internal_attributes()),
        "callbacks": [repr(sorted(plain(vars(callback)).items())) for callback in callbacks],
    }


def plain(attributes):
    """Return the attributes of a callback that print alike when they are alike."""
    simple = (type(None), bool, int, float, str, list, dict)
    return {name: value for name, value in attributes.items() if isinstance(value, simple)}


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("fresh", [False, True], ids=["fitted here", "fitted elsewhere"])
@pytest.mark.filterwarnings("ignore:.*GraphModule.*")
def test_model_callbacks_files_and_the_record_are_as_before_also_where_training_fails(
    fresh, fails, tmp_path, monkeypatch
):
    callbacks, model = watching(tmp_path), nets.plain()
    sisa = SISA(shards=2, slices=2, record=tmp_path / "record", key=KEY)
    data = nets.table()
    model.fit(**data, epochs=2, verbose=0, callbacks=[*callbacks, sisa])
    given = {}
    if fresh:
        model, callbacks, sisa = nets.plain(), watching(tmp_path), SISA(record=tmp_path / "record", key=KEY)
        model.optimizer.build(model.trainable_variables)
        given = {"model": model, **data, "callbacks": callbacks, "verbose": 0}
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"best.keras", "log.csv", "whole-1.keras"} <= files
    monkeypatch.setattr(Busy, "fails", fails)
    with untouched(tmp_path, read=lambda: held(model, callbacks)):
        if fails:
            with pytest.raises(ArithmeticError):
                replay(sisa, stages="all", **given)
        else:
            assert replay(sisa, stages="all", **given).outcome == "bit_identical"
    monkeypatch.setattr(Busy, "fails", False)
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        assert record.verify().is_clean
    model.save(tmp_path / "after.keras")  # saving is as it was
    assert (tmp_path / "after.keras").is_file()


def test_no_random_number_of_the_caller_is_moved(tmp_path):
    _, sisa, _ = fit("plain", tmp_path)

    def drawn():
        keras.utils.set_random_seed(7)
        yield
        yield keras.ops.convert_to_numpy(keras.random.uniform((2,))).tolist(), np.random.random_sample()  # noqa: NPY002

    plainly, around = drawn(), drawn()
    next(plainly)
    expected = next(plainly)
    next(around)
    replay(sisa, stages=[(1, 0)])
    assert next(around) == expected


# What replay notices


@pytest.fixture
def folder(tmp_path):
    fit("plain", tmp_path)
    return tmp_path


def anew(folder, **more):
    """Replay with a model that was built for it."""
    case = CASES["plain"]
    sisa = SISA(record=folder / "record", key=KEY, ids=ids_of(case))
    return replay(sisa, **{"model": case.model(), **data_of(case), "verbose": 0} | more)


def only(found, shard, cell):
    (stage,) = (stage for stage in found.stages if (stage.shard, stage.slice) == (shard, cell))
    return stage


def test_a_state_that_its_rows_do_not_lead_to_does_not_replay(folder):
    def changed(state):
        state["model"]["variables"][0][1][0, 0] += 0.01
        return state

    (folder / "key").write_bytes(KEY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYBRUSH_KEY_FILE", str(folder / "key"))
        forge(folder / "record", 1, 0, changed)
    found = anew(folder, stages=[(1, 0), (0, 0)])
    assert found.outcome == "mismatch" and only(found, 0, 0).outcome == "bit_identical"
    assert [(group.name, group.differing) for group in only(found, 1, 0).groups if group.differing] == [
        ("model.variables", 1)
    ]
    assert anew(folder, stages=[(1, 0)], tolerance=Tolerance(absolute=0.1)).outcome == "within_tolerance"


def test_what_cannot_be_replayed_is_refused(folder):
    with pytest.raises(ConfigurationError, match=r"has no stages \[\(9, 9\)\]"):
        anew(folder, stages=[(9, 9)])
    with pytest.raises(FingerprintError, match="optimization"):
        anew(folder, model=nets.plain("sgd"))
    case = CASES["plain"]
    sisa = SISA(record=folder / "record", key=KEY, ids=ids_of(case, (2, 4)))
    with pytest.raises(MissingRowsError):
        replay(sisa, model=case.model(), **data_of(case, (2, 4)), verbose=0, stages="all")
    with pytest.raises(ConfigurationError, match="pass model= and x="):
        replay(SISA(record=folder / "record", key=KEY))
