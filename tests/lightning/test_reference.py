"""SISA in Lightning against a plain torch loop that knows neither Lightning nor PyBrush, bit for bit."""

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn

from pybrush.record import Record
from tests import reference
from tests.lightning.models import Net, Noisy, Repeated, Rows
from tests.lightning.twin import KEY, SEED, Case, answers, data_for, module_for, trainer_for

NAMED = {"ids": "names"}
CASES = {
    "momentum": Case(sisa=NAMED, epochs=3),
    "adam and a scheduler": Case(lambda: Net("adam", "step"), sisa=NAMED, slices=3),
    "accumulation": Case(sisa=NAMED, trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}),
    "no short batches": Case(sisa=NAMED, loader={"drop_last": True}, slices=1),
    "equal rows": Case(rows=Repeated, shards=3),
    "its own collate": Case(sisa=NAMED, loader={"collate_fn": lambda batch: halved(batch)}),
    "a worker that draws": Case(
        sisa={"ids": "names", "content": "off"}, rows=Noisy, loader={"num_workers": 1}, epochs=3
    ),
    "subjects": Case(sisa={"subjects": "owners", "ids": "names"}, shards=3),
    "steps": Case(sisa=NAMED, slices=1, epochs=3, trainer={"max_steps": 7}),
    "steps in slices, which epochs end first": Case(sisa=NAMED, trainer={"max_steps": 15}),
    "steps and no epochs": Case(sisa=NAMED, slices=3, epochs=13, trainer={"max_steps": 13, "max_epochs": None}),
    "steps and accumulation": Case(sisa=NAMED, epochs=4, trainer={"max_steps": 7, "accumulate_grad_batches": 2}),
    "a few batches": Case(sisa=NAMED, trainer={"limit_train_batches": 3}),
    "one batch": Case(sisa=NAMED, trainer={"limit_train_batches": 1}),
    "a share of the batches": Case(sisa=NAMED, slices=3, trainer={"limit_train_batches": 0.4}),
    "accumulation by schedule": Case(
        sisa=NAMED, epochs=4, callbacks=(lambda: GradientAccumulationScheduler({1: 2, 4: 3}),)
    ),
    "double precision": Case(sisa=NAMED, trainer={"precision": "64-true"}),
    "true half precision": Case(sisa=NAMED, trainer={"precision": "bf16-true"}),
}  # fmt: skip

TYPES = {"double precision": torch.float64, "true half precision": torch.bfloat16}


def plain_network(initial):
    """Return the network of Net in its initial state, as plain torch."""
    network = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))
    network.load_state_dict({name.removeprefix("net."): t for name, t in torch.load(initial).items()})
    return network


def optimizer_for(name, network):
    if name == "adam and a scheduler":
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), None


def halved(batch):
    inputs, labels = torch.utils.data.default_collate(batch)
    return inputs / 2, labels


def reader(name, rows, seed):
    """Return what reads a batch's inputs; a worker draws from the seed of its epoch."""
    if name == "its own collate":
        return lambda batch: rows.x[batch] / 2
    if name != "a worker that draws":
        return lambda batch: rows.x[batch].to(TYPES.get(name))
    first = torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed & (2**63 - 1)))
    noise = torch.Generator().manual_seed(int(first))
    return lambda batch: torch.stack([rows.x[row] + 0.1 * torch.randn(6, generator=noise) for row in batch])


def train_epoch(network, optimizer, read, labels, batches, accumulate=1, clip=None, most=10**6):
    """Train on some batches, with so many steps at most; return how many steps it made."""
    network.train()
    steps = 0
    for number, batch in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(network(read(batch)), labels[batch]) / accumulate
        loss.backward()
        if number % accumulate == 0 or number == len(batches):
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if steps == most:
                break
    return steps


def taken(case, batches):
    """Return the batches of an epoch that are trained on, one at least."""
    limit = case.trainer.get("limit_train_batches", 1.0)
    return batches[: limit if isinstance(limit, int) else max(1, int(len(batches) * limit))]


def accumulated(name, case, epoch):
    """Return how many batches make a step, in an epoch counted through the slices of a shard."""
    if name == "accumulation by schedule":
        return 1 if epoch < 1 else 2 if epoch < 4 else 3
    return case.trainer.get("accumulate_grad_batches", 1)


def plain_constituents(name, case, rows, names, placements, initial):
    """Train every shard by itself; return its network by shard."""
    epochs, done, begun = -(-2 * case.epochs // (case.slices + 1)), {}, {}
    clip, share = case.trainer.get("gradient_clip_val"), -(-case.trainer.get("max_steps", 10**6) // case.slices)
    for shard, last, members in reference.schedule(names, case.shards, case.slices, placements):
        torch.manual_seed(reference.seed_of(SEED, shard, last, 0, "stage"))
        if shard not in done:
            network = plain_network(initial).to(TYPES.get(name))
            done[shard] = network, *optimizer_for(name, network)
        network, optimizer, scheduler = done[shard]
        before, left = begun.get(shard, 0), share
        begun[shard] = before + epochs
        for epoch in range(epochs):
            torch.manual_seed(reference.seed_of(SEED, shard, last, epoch, "train"))
            order = reference.epoch_order(members, SEED, shard, last, epoch)
            batches = taken(case, reference.batches(order, 5, case.loader.get("drop_last", False)))
            read = reader(name, rows, reference.seed_of(SEED, shard, last, epoch, "workers"))
            accumulate = accumulated(name, case, before + epoch)
            left -= train_epoch(network, optimizer, read, rows.y, batches, accumulate, clip, left)
            if left == 0:
                break
            if scheduler is not None:
                scheduler.step()
    return {shard: network for shard, (network, _, _) in done.items()}


def names_of(case, rows, record):
    """Return pseudonyms and what decides placement; by content they are the record's, which other tests check."""
    if "ids" not in case.sisa:
        return [row.tobytes() for row in trainer_roster(case, rows, record)], None
    names = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in rows.names]
    if "subjects" not in case.sisa:
        return names, None
    return names, [reference.subject(KEY, b"s:" + owner.encode()) for owner in rows.owners]


def trainer_roster(case, rows, record):
    return trainer_for(case, record.folder.parent).callbacks[0].naming.roster(rows, record.names).names


@pytest.mark.parametrize("name", CASES)
def test_every_constituent_equals_a_plain_torch_loop(name, tmp_path):
    case, rows = CASES[name], CASES[name].rows()
    trainer, module = trainer_for(case, tmp_path), module_for(case, tmp_path / "initial.pt")
    trainer.fit(module, **data_for(case))
    record = Record.open(tmp_path / "record", KEY)
    networks = plain_constituents(name, case, rows, *names_of(case, rows, record), tmp_path / "initial.pt")
    assert networks.keys() == record.constituents().keys()
    for shard, key in record.constituents().items():
        stored = record.store.load(key)[0]["module"]
        expected = networks[shard].state_dict()
        tensors = stored["parameters"] | stored["buffers"]
        assert tensors.keys() == {f"net.{tensor}" for tensor in expected}
        assert all(torch.equal(tensors[f"net.{tensor}"], value) for tensor, value in expected.items())
    inputs = Rows(seed=3).x.to(TYPES.get(name))
    outputs = torch.stack([network.eval()(inputs) for network in networks.values()])
    mean = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).softmax(-1).mean(0).log()
    torch.testing.assert_close(answers(trainer, module), mean.to(outputs.dtype))
