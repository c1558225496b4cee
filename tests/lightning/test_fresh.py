"""Optimizers that configure_optimizers returns again start every shard as they were first returned.

The twin is the same module that makes them anew each time: bit for bit the same stages.
"""

import pytest
import torch
from torch.utils.data import DataLoader

from pybrush.errors import UnsupportedError
from pybrush.record import Record
from tests.lightning.models import Net, Rows
from tests.lightning.twin import Case, trainer_for

KINDS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.02),
}


class Fresh(Net):
    """Makes optimizer and scheduler anew, as it should be."""

    kind = "adam"

    def made(self):
        optimizer = KINDS[self.kind](self.parameters())
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

    def configure_optimizers(self):
        return self.made()


class Kept(Fresh):
    """Makes them once, in its constructor."""

    def __init__(self):
        super().__init__()
        self.kept = self.made()

    def configure_optimizers(self):
        return self.kept


class HalfKept(Kept):
    """Makes the scheduler anew, on the optimizer that it keeps."""

    def configure_optimizers(self):
        (optimizer,), _ = self.kept
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


def fitted(folder, module, gone=(), **case):
    """Fit a module whose initial weights are always the same; return trainer and loader."""
    state = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=state))
    trainer = trainer_for(Case(**case), folder, sisa={"ids": "names"})
    trainer.fit(module, DataLoader(Rows(gone), batch_size=5, shuffle=True))
    return trainer


def stages(folder):
    """Return shard, slice and tensors of the states of a record, without what names the module."""
    record = Record.open(folder / "record", bytes(range(32)))
    loaded = {(s.shard, s.slice): record.store.load(s.key)[0] for s in record.graph()}
    record.close()
    return loaded


def assert_same(one, other):
    assert one.keys() == other.keys() and len(one) >= 2
    for place in one:
        a, b = one[place], other[place]
        for part in ("parameters", "buffers"):
            assert all(torch.equal(a["module"][part][n], b["module"][part][n]) for n in a["module"][part]), place
        assert str(a["optimization"]) == str(b["optimization"]), place


@pytest.mark.parametrize("kind", KINDS)
def test_kept_optimizers_train_like_new_ones(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(Fresh, "kind", kind)
    fitted(tmp_path / "new", Fresh())
    fitted(tmp_path / "kept", Kept())
    assert_same(stages(tmp_path / "kept"), stages(tmp_path / "new"))


def test_a_request_with_kept_optimizers_ends_like_a_fit_without_the_rows(tmp_path):
    module = Kept()
    trainer = fitted(tmp_path / "a", module)
    rates = [group["lr"] for group in module.kept[0][0].param_groups]
    before = str(module.kept[0][0].state_dict())
    trainer.unlearn(rows=[3, 20], dry_run=True)
    assert str(module.kept[0][0].state_dict()) == before and rates != [0.02]  # a dry run leaves them alone
    trainer.unlearn(rows=[3, 20])
    fitted(tmp_path / "b", Fresh(), gone=(3, 20))
    assert_same(stages(tmp_path / "a"), stages(tmp_path / "b"))


def test_an_optimizer_that_has_trained_before_is_refused(tmp_path):
    module = Kept()
    torch.nn.functional.cross_entropy(module(torch.randn(4, 6)), torch.zeros(4, dtype=torch.int64)).backward()
    module.kept[0][0].step()
    with pytest.raises(UnsupportedError, match="Adam that has trained before"):
        fitted(tmp_path, module)
    assert not (tmp_path / "record" / "stages").exists()


def test_a_new_scheduler_on_a_kept_optimizer_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="with a new scheduler"):
        fitted(tmp_path, HalfKept())
