"""Manual optimization in SISA against a plain torch loop that knows neither Lightning nor PyBrush, bit for bit."""

import pytest
import torch
from torch import nn

from pybrush.record import Record
from tests import reference
from tests.lightning.models import Rows
from tests.lightning.special import Adversaries
from tests.lightning.twin import KEY, SEED, Case, data_for, module_for, trainer_for


class ByHand:
    """The two networks of Adversaries with their optimizers, trained without a trainer."""

    def __init__(self, initial):
        self.parts = Adversaries()
        self.parts.load_state_dict(torch.load(initial, weights_only=True))
        self.make = torch.optim.Adam(self.parts.generator.parameters(), lr=0.02)
        self.judge = torch.optim.SGD(self.parts.critic.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.judge, 0.7)
        self.steps = 0

    def step_by(self, optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.steps += 1

    def epoch(self, rows, batches, most):
        """Train on some batches until so many steps are made; say whether they are."""
        generator, critic = self.parts.generator, self.parts.critic
        for batch in batches:
            x, y = rows.x[batch], rows.y[batch]
            fake = generator(torch.randn(len(x), 4))
            self.step_by(self.make, critic(fake).logsumexp(1).mean())
            loss = nn.functional.cross_entropy(critic(x), y) - critic(fake.detach()).logsumexp(1).mean()
            self.step_by(self.judge, loss)
            if batch is batches[-1] and self.steps % 4 == 0:
                self.scheduler.step()
            if self.steps >= most:
                return True
        return False


@pytest.mark.parametrize("limit", [10**6, 26])
@pytest.mark.parametrize("slices", [1, 2])
def test_two_optimizers_stepped_by_hand_equal_a_plain_torch_loop(slices, limit, tmp_path):
    case = Case(Adversaries, slices=slices, epochs=3, sisa={"ids": "names"}, trainer={"max_steps": limit})
    module = module_for(case, tmp_path / "initial.pt")
    trainer_for(case, tmp_path).fit(module, **data_for(case))
    rows, done = Rows(), {}
    names = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in rows.names]
    for shard, last, members in reference.schedule(names, case.shards, slices, None):
        torch.manual_seed(reference.seed_of(SEED, shard, last, 0, "stage"))
        networks = done.setdefault(shard, ByHand(tmp_path / "initial.pt"))
        most = networks.steps + -(-limit // slices)
        for epoch in range(-(-2 * case.epochs // (slices + 1))):
            torch.manual_seed(reference.seed_of(SEED, shard, last, epoch, "train"))
            order = reference.epoch_order(members, SEED, shard, last, epoch)
            if networks.epoch(rows, reference.batches(order, 5, False), most):
                break
    record = Record.open(tmp_path / "record", KEY)
    for shard, key in record.constituents().items():
        stored = record.store.load(key)[0]["module"]
        tensors = stored["parameters"] | stored["buffers"]
        expected = done[shard].parts.state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], value) for name, value in expected.items())
