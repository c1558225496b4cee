"""A compiled module trains, is unlearned and answers with the bits of the module as it was written (backend eager)."""

import copy

import pytest
import torch
from torch import nn

from pybrush.record import Record
from tests.lightning.models import KILL, Net, Rows
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import KEY, Case, answers, data_for, trainer_for

CASE = Case(sisa={"ids": "names"})


class Silent(Net):
    """Logs nothing: under a compiled training_step Lightning's own self.log fails in this version of torch."""

    def training_step(self, batch, index):
        KILL.step()
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)


def by_wrapper(module):
    return torch.compile(module, backend="eager")


def by_method(module):
    module.compile(backend="eager")
    return module


def by_part(module):
    module.net.compile(backend="eager")
    return module


WAYS = {"torch.compile": by_wrapper, "module.compile": by_method, "a compiled part": by_part}


LATER = pytest.param("a compiled part", marks=pytest.mark.long)


def initial():
    torch.manual_seed(1)
    return Silent()


def plain(folder, gone=()):
    """Fit the module as it was written, without some rows; return its answers."""
    trainer, module = trainer_for(CASE, folder), initial()
    trainer.fit(module, **data_for(CASE, gone))
    return answers(trainer, module)


@pytest.mark.parametrize("way", [pytest.param("torch.compile", marks=pytest.mark.long), "module.compile", LATER])
def test_a_compiled_module_is_fitted_and_unlearned_like_the_plain_one(way, tmp_path):
    module, trainer = initial(), trainer_for(CASE, tmp_path)
    trainer.fit(WAYS[way](module), **data_for(CASE))
    assert torch.equal(answers(trainer, module), plain(tmp_path / "whole"))
    assert_same_record(tmp_path, tmp_path / "whole")
    result = trainer.unlearn(ids=[Rows().names[3]])
    now = answers(trainer, module)
    assert torch.equal(now, plain(tmp_path / "without", [3]))
    assert_same_record(tmp_path, tmp_path / "without")
    deployed = torch.cat([result.model(batch) for batch in Rows(seed=3).x.split(16)])  # batches as in `answers`
    assert torch.equal(deployed, now)
    assert result.guarantee.differences == ()


@pytest.mark.parametrize("way", ["torch.compile", pytest.param("module.compile", marks=pytest.mark.long), LATER])
def test_a_record_of_a_compiled_module_is_served_by_a_plain_one_and_the_other_way_round(way, tmp_path):
    for fitted, asking in ((WAYS[way], lambda module: module), (lambda module: module, WAYS[way])):
        folder = tmp_path / str(fitted is WAYS[way])
        trainer_for(CASE, folder).fit(fitted(initial()), **data_for(CASE))
        torch.manual_seed(7)
        module, later = Silent(), trainer_for(CASE, folder)
        result = later.unlearn(ids=[Rows().names[3]], model=asking(module), **data_for(CASE))
        assert torch.equal(answers(later, module), plain(folder / "without", [3]))
        assert_same_record(folder, folder / "without")
        assert "different compiled: False, True" in result.guarantee.differences[0]


def test_the_aggregate_of_a_compiled_module_is_copies_of_it_as_it_was_written(tmp_path):
    module, trainer = initial(), trainer_for(CASE, tmp_path)
    trainer.fit(by_wrapper(module), **data_for(CASE))
    both = Record.open(tmp_path / "record", KEY).aggregate(module)
    assert vars(module).keys() >= {"forward", "training_step"} and module._compiler_ctx is not None
    for member in both.members:
        assert "forward" not in vars(member) and member._compiler_ctx is None
    inputs = Rows(seed=3).x
    singly = torch.stack([copy.deepcopy(member)(inputs).softmax(-1) for member in both.members]).detach()
    torch.testing.assert_close(both(inputs).detach(), singly.mean(0).log())
    assert len({float(output[0, 0]) for output in singly}) == 2


def test_nothing_is_compiled_anew_for_the_aggregate(tmp_path):
    compiled = []

    def counting(graph, inputs):
        compiled.append(graph)
        return graph.forward

    module, trainer = initial(), trainer_for(CASE, tmp_path)
    module.compile(backend=counting)
    trainer.fit(module, **data_for(CASE))
    fitted = len(compiled)
    answers(trainer, module)
    assert 0 < fitted == len(compiled)
    module.eval()(Rows(seed=4).x)
    assert len(compiled) > fitted  # it is compiled again afterwards
