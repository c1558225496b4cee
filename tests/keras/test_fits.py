"""Which fits SISA takes part in, in which form it is called, and which fits it refuses."""

import keras
import pytest

from pybrush.errors import ConfigurationError, ConstituentWarning, UnsupportedError
from pybrush.record import Record
from pybrush_keras import SISA
from pybrush_keras.patches import original_fit
from tests.keras import nets
from tests.keras.twin import KEY, assert_same_record

FIT = {"epochs": 2, "batch_size": 16, "verbose": 0}


def sisa_in(folder, **changes):
    settings = {"shards": 2, "slices": 1, "ids": "position", "key": KEY, "seed": 5} | changes
    return SISA(record=folder / "record", **settings)


def model():
    keras.utils.set_random_seed(1)
    return nets.plain("sgd", normed=False)


def weights(model):
    return [value.copy() for value in model.get_weights()]


def same(one, other):
    return all((a == b).all() for a, b in zip(one, other, strict=True))


class Calling(keras.Model):
    """Has a fit of its own, which calls Keras' with more."""

    def __init__(self):
        super().__init__()
        self.inner = model()
        self.calls = 0

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def fit(self, *arguments, **named):
        self.calls += 1
        return super().fit(*arguments, **named)


class TestForms:
    def test_all_forms_of_a_fit_leave_the_same_record(self, tmp_path):
        data = nets.table()
        forms = {
            "list": lambda sisa: model().fit(data["x"], data["y"], callbacks=[sisa], **FIT),
            "bare": lambda sisa: model().fit(data["x"], data["y"], callbacks=sisa, **FIT),
            "by place": lambda sisa: model().fit(data["x"], data["y"], 16, 2, 0, (sisa,)),
            "patch-free": lambda sisa: sisa.fit(model(), data["x"], data["y"], **FIT),
            "with others": lambda sisa: sisa.fit(
                model(), **data, callbacks=[keras.callbacks.TerminateOnNaN(), sisa], **FIT
            ),
        }
        for name, form in forms.items():
            folder = tmp_path / name
            folder.mkdir()
            history = form(sisa_in(folder))
            assert history.history["shard"] == [0, 0, 1, 1]
            assert_same_record(tmp_path / "list", folder)

    def test_a_fit_of_the_users_own_that_calls_keras_takes_part(self, tmp_path):
        calling = nets.compiled(Calling(), "sgd")
        sisa = sisa_in(tmp_path, shards=1, slices=2)
        calling.fit(**nets.table(), callbacks=[sisa], **FIT)
        assert calling.calls == 1
        assert len(sisa.recorded().store.keys()) == 2

    def test_a_fit_without_sisa_is_kerass_own(self):
        own, theirs = model(), model()
        keras.utils.set_random_seed(3)
        own.fit(**nets.table(), **FIT)
        keras.utils.set_random_seed(3)
        history = original_fit(theirs)(**nets.table(), **FIT)
        assert same(weights(own), weights(theirs)) and "shard" not in history.history


class TestRefusals:
    def test_a_callback_that_keras_runs_itself_raises_before_anything_is_trained(self, tmp_path):
        fresh = model()
        before = weights(fresh)
        with pytest.raises(ConfigurationError, match=r"did not take part in this fit.*sisa\.fit\(model"):
            original_fit(fresh)(**nets.table(), callbacks=[sisa_in(tmp_path)], **FIT)
        assert same(before, weights(fresh)) and not (tmp_path / "record").exists()

    def test_a_callback_list_is_refused(self, tmp_path):
        fresh = model()
        held = keras.callbacks.CallbackList([sisa_in(tmp_path)], model=fresh)
        with pytest.raises(UnsupportedError, match="CallbackList"):
            fresh.fit(**nets.table(), callbacks=held, **FIT)

    def test_two_sisa_in_one_fit_are_refused(self, tmp_path):
        pair = [sisa_in(tmp_path / "a"), sisa_in(tmp_path / "b")]
        with pytest.raises(UnsupportedError, match="two SISA"):
            model().fit(**nets.table(), callbacks=pair, **FIT)

    @pytest.mark.parametrize("way", ["fit", "step", "batch"])
    def test_a_model_that_was_trained_before_is_refused(self, way, tmp_path):
        trained, data = model(), nets.table()
        if way == "fit":
            trained.fit(**data, **FIT)
        elif way == "step":
            trained.train_on_batch(data["x"], data["y"])
        else:
            trained.fit(data["x"][:16], data["y"][:16], **FIT)
            trained.compile("sgd", nets.crossed(), jit_compile=False)  # another optimizer, that has taken no step
        before = weights(trained)
        with pytest.raises(ConfigurationError, match="trained before"):
            trained.fit(**data, callbacks=[sisa_in(tmp_path)], **FIT)
        assert same(before, weights(trained))

    def test_a_model_that_another_record_trained_is_refused(self, tmp_path):
        trained = model()
        trained.fit(**nets.table(), callbacks=[sisa_in(tmp_path / "a")], **FIT)
        with pytest.raises(ConfigurationError, match="trained before"):
            trained.fit(**nets.table(), callbacks=[sisa_in(tmp_path / "b")], **FIT)


class TestSecondFits:
    def test_a_second_fit_trains_nothing_and_ends_where_the_first_did(self, tmp_path):
        trained, sisa = model(), sisa_in(tmp_path)
        trained.fit(**nets.table(), callbacks=[sisa], **FIT)
        before, keys = weights(trained), sisa.recorded().store.keys()
        steps = int(keras.ops.convert_to_numpy(trained.optimizer.iterations))
        history = trained.fit(**nets.table(), callbacks=[sisa], **FIT)
        assert history.epoch == [] and sisa.recorded().store.keys() == keys
        assert same(before, weights(trained))
        other = model()
        other.fit(**nets.table(), callbacks=[sisa_in(tmp_path, seed=None)], **FIT)
        assert same(before, weights(other))
        assert int(keras.ops.convert_to_numpy(other.optimizer.iterations)) == steps

    def test_a_fit_that_failed_leaves_the_model_as_it_was_and_goes_on(self, tmp_path):
        class Failing(keras.callbacks.Callback):
            failing = True

            def on_epoch_end(self, epoch, logs=None):
                if self.failing and logs["shard"] == 1:
                    raise OSError("power")

        trained, sisa, failing = model(), sisa_in(tmp_path), Failing()
        before = weights(trained)
        with pytest.raises(OSError, match="power"):
            trained.fit(**nets.table(), callbacks=[failing, sisa], **FIT)
        assert same(before, weights(trained))
        Failing.failing = False
        history = trained.fit(**nets.table(), callbacks=[failing, sisa], **FIT)
        assert history.history["shard"] == [1, 1]
        whole = tmp_path / "whole"
        whole.mkdir()
        model().fit(**nets.table(), callbacks=[Failing(), sisa_in(whole)], **FIT)
        assert_same_record(tmp_path, whole)

    def test_two_models_and_two_records_in_one_process_do_not_meet(self, tmp_path):
        def begun(name, **changes):
            (tmp_path / name).mkdir()
            fitted, sisa = model(), sisa_in(tmp_path / name, **changes)
            fitted.fit(**nets.table(), callbacks=[sisa], **FIT)
            return sisa

        a, b = begun("a"), begun("b", shards=1, slices=2)
        b.unlearn(rows=[5], verbose=0)
        a.unlearn(rows=[3], verbose=0)
        begun("a alone").unlearn(rows=[3], verbose=0)
        begun("b alone", shards=1, slices=2).unlearn(rows=[5], verbose=0)
        for name in ("a", "b"):
            assert_same_record(tmp_path / name, tmp_path / f"{name} alone")


class TestConstituents:
    def test_predict_and_evaluate_warn_after_a_fit_but_not_inside_it_nor_on_the_aggregate(self, tmp_path):
        held, data = model(), nets.table()
        asking = Asking(data["x"])
        held.fit(**data, callbacks=[asking, sisa_in(tmp_path)], validation_data=tuple(data.values()), **FIT)
        with pytest.warns(ConstituentWarning, match=r"predict: .* one constituent of 2.*aggregate\(model\)"):
            held.predict(data["x"], verbose=0)
        with pytest.warns(ConstituentWarning, match="evaluate: "):
            held.evaluate(**data, verbose=0)
        aggregate = Record.open(tmp_path / "record", KEY).aggregate(held)
        assert aggregate.predict(data["x"], verbose=0).shape == (nets.N, nets.KINDS)

    def test_a_single_constituent_does_not_warn(self, tmp_path):
        held, data = model(), nets.table()
        held.fit(**data, callbacks=[sisa_in(tmp_path, shards=1, slices=2)], **FIT)
        held.predict(data["x"], verbose=0)
        held.evaluate(**data, verbose=0)


class Asking(keras.callbacks.Callback):
    """Asks the model in training, which must not warn."""

    def __init__(self, x):
        super().__init__()
        self.ask = lambda: self.model.predict(x, verbose=0)

    def on_epoch_end(self, epoch, logs=None):
        self.ask()
