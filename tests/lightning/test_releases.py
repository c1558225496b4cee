"""Approximate methods through `trainer.unlearn`: what serves afterwards, and the way back to an exact record."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from pybrush.errors import GuaranteeError, UnsupportedError
from pybrush.guarantee import Empirical
from pybrush.method import Applied
from pybrush.record import Record
from tests import reference
from tests.lightning.models import Net, OtherNet, Rows
from tests.lightning.test_bitwise import assert_as_if_never_seen, fitted
from tests.lightning.twin import CASES, KEY, answers, data_for, trainer_for

PROMISE = Empirical((), ("a few steps show little",))
GONE = {"ids": CASES["ids"].gone, "the other package": (3, 20, 21, 30)}
"""Rows of both shards."""


@dataclass(frozen=True)
class Ascent:
    """Steps up the loss of the forgotten rows, in the user's own units."""

    seen: list = field(default_factory=list)
    name: str = "ascent"
    promise: Empirical = PROMISE
    needs: frozenset = frozenset({"forget"})
    settings: dict = field(default_factory=lambda: {"steps": 2})

    def apply(self, learner, portion):
        module, rows = learner.module, [portion.data.dataset[int(row)] for row in portion.forget]
        self.seen.append((portion.shard, portion.forget.tolist()))
        x, y = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        for _ in range(2):
            loss = nn.functional.cross_entropy(module.eval()(x), y)
            found = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(module.parameters(), found, strict=True):
                    parameter += 0.1 * gradient
        module.train()
        return Applied(PROMISE, visits=2 * len(rows), steps=2)


def opened(folder):
    return Record.open(folder / "record", KEY)


@pytest.mark.parametrize("name", ["ids", "the other package"])
def test_an_approximate_request_serves_its_states_and_an_exact_one_has_the_bits_of_training_without(
    name, tmp_path, fresh_process
):
    trainer, module = fitted(name, tmp_path)
    before, method, make = answers(trainer, module), Ascent(), OtherNet if "other" in name else Net
    result = forget_approximately(name, trainer, method)
    assert isinstance(result.guarantee, Empirical) and result.cost.stages_rebuilt == 0
    assert sorted(shard for shard, _ in method.seen) == [0, 1]  # several constituents hold the rows
    after = answers(trainer, module)
    assert not torch.equal(before, after)
    x = Rows(seed=3).x
    torch.testing.assert_close(after.double().exp(), mean_of_served(tmp_path, make, x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.model(x).double(), after.double(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        deployed = opened(tmp_path).aggregate(make())(x)
    torch.testing.assert_close(deployed.double(), after.double(), rtol=1e-5, atol=1e-6)
    fresh_process.ask("unlearn", name=name, folder=tmp_path, gone=GONE[name], ask={**asked(name), "guarantee": "exact"})
    exact = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert_as_if_never_seen(name, tmp_path, fresh_process, exact, GONE[name])
    assert list((tmp_path / "record" / "releases").iterdir()) == []


def asked(name):
    """Return what `unlearn` is told to forget."""
    return {"ids": [Rows().names[row] for row in GONE[name]]} if name == "ids" else {"rows": GONE[name]}


def mean_of_served(folder, make, x):
    """Return the mean probability over what serves each shard, from the record alone."""
    record, found = opened(folder), []
    for key in record.constituents().values():
        stored, member = record.store.load(key)[0]["module"], make().eval()
        member.load_state_dict({n: (stored["parameters"] | stored["buffers"])[n] for n in member.state_dict()})
        with torch.no_grad():
            found.append(member(x).double().softmax(-1))
    return torch.stack(found).mean(0)


def forget_approximately(name, trainer, method, **more):
    return trainer.unlearn(**asked(name), method=method, **more)


def test_a_file_saved_after_an_approximate_request_holds_no_moments_and_goes_with_the_release(tmp_path):
    trainer, _ = fitted("ids", tmp_path, enable_checkpointing=True)
    files = set(tmp_path.rglob("*.ckpt"))
    assert files and any(moments(path) for path in files)
    forget_approximately("ids", trainer, Ascent())
    record = opened(tmp_path)
    kept = {stage.key for stage in record.graph()}
    held = {str(path) for path in files if path.exists()}
    assert held < {str(path) for path in files}
    assert {record.artefacts()[path] for path in held} <= kept  # stages that never saw the rows
    assert trainer.checkpoint_callback.best_model_path == ""
    trainer.save_checkpoint(tmp_path / "edited.ckpt")
    assert not moments(tmp_path / "edited.ckpt")
    assert record.artefacts()[str(tmp_path / "edited.ckpt")] in record.stand_ins().values()
    trainer.unlearn(**asked("ids"), guarantee="exact")
    assert not (tmp_path / "edited.ckpt").exists()


def test_a_rebuild_of_another_shard_leaves_no_moments_of_it_beside_the_state_of_a_release(tmp_path):
    trainer, _ = fitted("ids", tmp_path)
    names = Rows().names
    shards = [reference.cell(reference.pseudonym(KEY, b"s:" + name.encode()), 2, 2)[0] for name in names]
    trainer.unlearn(ids=[names[shards.index(1)]], method=Ascent())
    trainer.unlearn(ids=[names[shards.index(0)]])
    assert set(opened(tmp_path).stand_ins()) == {1}  # which the module holds
    trainer.save_checkpoint(tmp_path / "edited.ckpt")
    assert not moments(tmp_path / "edited.ckpt")


def moments(path):
    """Return the moments of the optimizers in a checkpoint."""
    states = torch.load(path, weights_only=False)["optimizer_states"]
    kept = [entry for state in states for entry in state["state"].values()]
    return [tensor for entry in kept for tensor in entry.values() if isinstance(tensor, torch.Tensor)]


def test_a_record_of_one_stage_takes_a_method_where_a_retrain_has_to_be_asked_for(tmp_path):
    trainer, module = fitted("whole", tmp_path)
    with pytest.raises(GuaranteeError, match="an approximate method"):
        trainer.unlearn(rows=[3])
    before = [parameter.clone() for parameter in module.parameters()]
    result = trainer.unlearn(rows=[3], method=Ascent())
    assert result.model is module
    assert any(not torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))


def test_several_processes_and_an_exact_wish_for_a_method_are_refused(tmp_path):
    trainer, module = fitted("ids", tmp_path)
    with pytest.raises(GuaranteeError, match="proves at most Empirical"):
        forget_approximately("ids", trainer, Ascent(), guarantee="exact")
    with pytest.raises(GuaranteeError, match="not known"):
        trainer.unlearn(**asked("ids"), method="ascent")
    two = trainer_for(CASES["ids"], tmp_path, devices=2, strategy="ddp")
    with pytest.raises(UnsupportedError, match="runs in one process"):
        forget_approximately("ids", two, Ascent(), model=module, **data_for(CASES["ids"]))
    assert opened(tmp_path).requests == ()
