"""Every private name of Keras and its backends that PyBrush uses; tests/keras/test_private.py watches each."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.callbacks.monitor_callback import MonitorCallback
from keras.src.models.functional import Functional
from keras.src.random import seed_generator
from keras.src.saving import saving_lib, serialization_lib
from keras.src.utils import io_utils
from keras.src.utils.rng_utils import GLOBAL_RANDOM_SEED
from keras.src.utils.tracking import TrackedDict, TrackedList, TrackedSet

# Building


def build(model: Any, batch: Any) -> None:
    """Give a compiled model its variables, its optimizer's and its metrics', in the shapes that a batch calls for."""
    model._symbolic_build(data_batch=batch)


def layers_of(model: Any) -> list[Any]:
    """Return a model and all layers in it, each once, in the order of their making."""
    found: list[Any] = model._flatten_layers()
    return found


_BY_LOOPS = {
    *("history", "train_function", "test_function", "predict_function", "_eval_epoch_iterator"),
    *("stop_training", "stop_evaluating", "stop_predicting", "_initial_epoch"),
}
"""Attributes that fit, evaluate and predict set on a model."""


@cache
def internal_attributes() -> frozenset[str]:
    """Return the names of attributes that Keras itself sets on models and layers."""
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    plain = (keras.layers.Layer(), keras.Model(), model, keras.Model(model.inputs, model.outputs))
    names = frozenset(name for layer in plain for name in vars(layer))
    return names | _BY_LOOPS


def begin_at_given_epoch(model: Any) -> None:
    """Let the next fit begin where its initial_epoch says: BackupAndRestore leaves an epoch of its own on a model."""
    model._initial_epoch = None


def compile_anew(model: Any) -> None:
    """Let the steps of training and validation be compiled again when they run next.

    A compiled step holds what Python held when it was first run: attributes, flags, numbers drawn by NumPy, the seeds
    of TensorFlow's own random operations. The steps of PyTorch look each time.
    """
    if keras.backend.backend() != "torch":
        model.make_train_function(force=True)
        model.make_test_function(force=True)


def own_optimizer(wrapper: Any) -> Any:
    """Return the optimizer in a LossScaleOptimizer, any other one as it is."""
    return getattr(wrapper, "inner_optimizer", wrapper)


def schedule_of(optimizer: Any) -> Any:
    """Return the learning-rate schedule of an optimizer, None where the rate is a variable."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def trained_by(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def loss_settings(loss: Any) -> dict[str, Any]:
    """Return what a loss of Keras was made with; get_config of many, as Huber's, leaves it out."""
    settings: dict[str, Any] = getattr(loss, "_fn_kwargs", {})
    return settings


def show(line: str) -> None:
    """Write a line where Keras' progress bar writes."""
    io_utils.print_msg(line)


# Attributes


def attributes_of_keras(owner: Any) -> frozenset[str]:
    """Return the names of attributes that Keras itself sets on layers, callbacks, optimizers and losses."""
    return next((names for kind, names in _attributes_by_kind() if isinstance(owner, kind)), internal_attributes())


@cache
def _attributes_by_kind() -> tuple[tuple[type, frozenset[str]], ...]:
    optimizer = keras.optimizers.Optimizer(0.1)
    callback = frozenset(vars(keras.callbacks.Callback())) | {"model", "_model"}
    return (
        (MonitorCallback, callback | {_MONITOR}),
        (keras.callbacks.Callback, callback),
        (keras.optimizers.Optimizer, frozenset(vars(optimizer)) - frozenset(optimizer.get_config())),
        (keras.losses.Loss, frozenset(vars(keras.losses.Loss()))),
    )


_MONITOR = "monitor_op"
"""Where EarlyStopping and its like keep a function; None until the first epoch ends, when min_delta gets its sign."""

_COMPARED = {"less": keras.ops.less, "greater": keras.ops.greater, "none yet": None}


def monitored(callback: Any) -> dict[str, str]:
    """Return by which comparison a callback tells that a value is better, as a word; empty for any that does not."""
    if not isinstance(callback, MonitorCallback):
        return {}
    return {_MONITOR: next(word for word, function in _COMPARED.items() if function is callback.monitor_op)}


def monitor(callback: Any, word: str) -> None:
    """Let a callback compare as `monitored` told."""
    callback.monitor_op = _COMPARED[word]


def buffers(model: Any) -> list[Any]:
    """Return the values of the buffers of PyTorch that layers hold beside their variables."""
    return [keras.ops.convert_to_numpy(buffer).copy() for buffer in _buffers(model)]


def write_buffers(model: Any, values: list[Any]) -> None:
    """Give buffers the values that `buffers` returned, in place."""
    for buffer, value in zip(_buffers(model), values, strict=True):
        buffer.copy_(keras.ops.convert_to_tensor(value, dtype=keras.backend.standardize_dtype(buffer.dtype)))


def _buffers(model: Any) -> list[Any]:
    if keras.backend.backend() != "torch":
        return []
    # A model of Keras does not know its layers as PyTorch would.
    found = {id(buffer): buffer for layer in layers_of(model) for buffer in layer.buffers()}
    return list(found.values())


def untracked(value: Any) -> Any:
    """Return Keras' own lists, dictionaries and sets as plain ones, to any depth."""
    if type(value) in (dict, TrackedDict):
        return {name: untracked(item) for name, item in value.items()}
    if type(value) in (list, TrackedList):
        return [untracked(item) for item in value]
    if type(value) is tuple:
        return tuple(untracked(item) for item in value)
    return set(value) if isinstance(value, TrackedSet) else value


_STATISTICS = ("input_mean", "input_vocabulary", "init_bin_boundaries")
"""Attributes in which preprocessing layers keep statistics that were given to them."""


def was_adapted(layer: Any) -> bool:
    """Whether a preprocessing layer learned from rows by `adapt`."""
    parts = (layer, getattr(layer, "_lookup_layer", None))
    given = (getattr(part, name, None) is not None for part in parts for name in _STATISTICS)
    return hasattr(type(layer), "adapt") and not any(given)


# Randomness


def seed_generators(model: Any) -> list[Any]:
    """Return the seed generators of a model's layers, each once."""
    found = {id(g): g for layer in layers_of(model) for g in layer._seed_generators}
    return list(found.values())


def global_generator() -> Any:
    """Return the generator from which unseeded `keras.random` calls draw; a compiled step holds on to it."""
    return seed_generator.global_seed_generator()


def user_seed() -> int | None:
    """Return the seed that `keras.utils.set_random_seed` was given last, None where it was not called."""
    seed: int | None = global_state.get_global_attribute(GLOBAL_RANDOM_SEED)
    return seed


def seed_backend(seed: int) -> None:
    """Seed the generators of the active backend from 64 bits."""
    name = keras.backend.backend()
    if name == "tensorflow":
        importlib.import_module("tensorflow").random.set_seed(seed & 0x7FFFFFFFFFFFFFFF)
    elif name == "torch":
        importlib.import_module("torch").manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def backend_randomness() -> Any:
    """Return the state of the active backend's global generators."""
    name = keras.backend.backend()
    if name == "tensorflow":
        context = importlib.import_module("tensorflow.python.eager.context").context()
        rng = getattr(context, "_rng", None)
        return context._seed, None if rng is None else rng.getstate()
    if name == "torch":
        torch = importlib.import_module("torch")
        return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return None


def restore_backend_randomness(state: Any) -> None:
    """Put the active backend's global generators into a state that `backend_randomness` returned."""
    name = keras.backend.backend()
    if name == "tensorflow":
        context = importlib.import_module("tensorflow.python.eager.context").context()
        context._set_global_seed(state[0])
        if state[1] is not None:
            context._rng.setstate(state[1])
    elif name == "torch":
        torch = importlib.import_module("torch")
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])


def backend_tensors() -> dict[type, Callable[[Any], str]]:
    """Return the active backend's classes of tensors, each with what tells that one has changed."""
    name = keras.backend.backend()
    if name == "tensorflow":
        tensorflow = importlib.import_module("tensorflow")
        # Tensors never change; variables do.
        return {tensorflow.Variable: lambda v: _hash(v.numpy()), tensorflow.Tensor: lambda v: str(id(v))}
    if name == "torch":
        return {importlib.import_module("torch").Tensor: lambda v: f"{id(v)} {v._version}"}
    return {}


def _hash(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def backend_generators() -> dict[type, Callable[[Any], bytes]]:
    """Return the active backend's classes of generators, each with what reads its state."""
    name = keras.backend.backend()
    if name == "tensorflow":
        return {importlib.import_module("tensorflow").random.Generator: lambda g: g.state.numpy().tobytes()}
    if name == "torch":
        return {importlib.import_module("torch").Generator: lambda g: g.get_state().numpy().tobytes()}
    return {}


# Limits and devices


def limits() -> tuple[int | None, int | None]:
    """Return the numbers of epochs and steps to which Keras' debugging limits cut every fit; None for no limit."""
    config = importlib.import_module("keras.src.backend.config")
    return config.max_epochs(), config.max_steps_per_epoch()


def is_distributed(model: Any) -> bool:
    """Whether a model is trained on several devices."""
    if keras.distribution.distribution() is not None:
        return True
    strategy = getattr(model, "_distribute_strategy", None)
    return strategy is not None and strategy.num_replicas_in_sync >= 1


def backend_environment() -> dict[str, Any]:
    """Return version, device, threads and processor features of the active backend, as plain JSON."""
    name = keras.backend.backend()
    if name == "tensorflow":
        tensorflow = importlib.import_module("tensorflow")
        threading = tensorflow.config.threading
        threads = [threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()]
        device = "gpu" if tensorflow.config.list_physical_devices("GPU") else "cpu"
        return {"tensorflow": tensorflow.__version__, "device": device, "threads": threads}
    module = importlib.import_module(name)
    if name == "torch":
        features = module.backends.cpu.get_cpu_capability()
        device = importlib.import_module("keras.src.backend.torch.core").get_device()
        return {
            "torch": module.__version__,
            "device": device,
            "threads": module.get_num_threads(),
            "features": features,
        }
    return {name: module.__version__}


# Copies of a model: the aggregate


def is_functional(model: Any) -> bool:
    """Whether a model is a graph of layers between inputs that it names."""
    return isinstance(model, Functional)


def compile_arguments(model: Any) -> dict[str, Any]:
    """Return what `keras.Model.compile` was called with, the objects themselves; empty where it was not called."""
    config = getattr(model, "_compile_config", None)
    return dict(config.config) if model.compiled and config is not None else {}


def objects_shared() -> Any:
    """Return a context in which an object that a config names twice is one object."""
    return serialization_lib.ObjectSharingScope()


def made_by(tensor: Any) -> Any:
    """Return the layer or operation that a symbolic tensor came of."""
    return tensor._keras_history[0]


def own_variables(layer: Any) -> list[Any]:
    """Return the variables that a layer holds itself, those of its seed generators last."""
    states = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *states]


def layers_by_path(model: Any) -> dict[str, Any]:
    """Return a model and every layer in it by the path under which Keras would save it.

    A path is made of attributes and positions, so it is the same in a copy, whatever the names of layers are.
    """
    found: dict[str, Any] = {}
    _walk(model, "", found, {})
    return found


def _walk(part: Any, path: str, found: dict[str, Any], seen: dict[int, Any]) -> None:
    if id(part) in seen:
        return
    seen[id(part)] = part  # held, since an attribute may return a list that nobody else holds
    if isinstance(part, keras.layers.Layer):
        found[path] = part
        children: Any = saving_lib._walk_saveable(part)
    elif isinstance(part, dict):
        children = enumerate(part.values())
    elif isinstance(part, (list, tuple)):
        children = enumerate(part)
    else:
        return
    for name, child in children:
        _walk(child, f"{path}/{name}", found, seen)


def records_defaults_alone(model: Any) -> bool:
    """Whether Keras believes that a model was made with the defaults of its class, whatever it was made with.

    The arguments of a layer are recorded; `keras.Model.__new__` does not hand them on.
    """
    kind = type(model)
    if not isinstance(model, keras.Model) or not kind.get_config.__module__.startswith("keras."):
        return False
    return not kind.__init__.__module__.startswith("keras.")


def ignore_training(layer: Any) -> None:
    """Let a layer of a functional model be called without the `training=` that the model is called with.

    Keras hands it to every layer, also over the `training=False` with which a layer was called when the graph was made.
    """
    layer._call_context_args = set()
