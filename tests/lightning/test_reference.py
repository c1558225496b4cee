"""SISA in Lightning against a plain torch loop that knows neither Lightning nor PyBrush, bit for bit."""

import pytest
import torch
from torch import nn

from pybrush.record import Record
from tests import reference
from tests.lightning.models import Net, Noisy, Repeated, Rows
from tests.lightning.twin import KEY, SEED, Case, answers, data_for, module_for, trainer_for

CASES = {
    "momentum": Case(sisa={"ids": "names"}, epochs=3),
    "adam and a scheduler": Case(lambda: Net("adam", "step"), sisa={"ids": "names"}, slices=3),
    "accumulation": Case(sisa={"ids": "names"}, trainer={"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}),
    "no short batches": Case(sisa={"ids": "names"}, loader={"drop_last": True}, slices=1),
    "equal rows": Case(rows=Repeated, shards=3),
    "its own collate": Case(sisa={"ids": "names"}, loader={"collate_fn": lambda batch: halved(batch)}),
    "a worker that draws": Case(
        sisa={"ids": "names", "content": "off"}, rows=Noisy, loader={"num_workers": 1}, epochs=3
    ),
    "subjects": Case(sisa={"subjects": "owners", "ids": "names"}, shards=3),
}


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
        return lambda batch: rows.x[batch]
    first = torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed & (2**63 - 1)))
    noise = torch.Generator().manual_seed(int(first))
    return lambda batch: torch.stack([rows.x[row] + 0.1 * torch.randn(6, generator=noise) for row in batch])


def train_epoch(network, optimizer, read, labels, batches, accumulate=1, clip=None):
    network.train()
    for number, batch in enumerate(batches, start=1):
        loss = nn.functional.cross_entropy(network(read(batch)), labels[batch]) / accumulate
        loss.backward()
        if number % accumulate == 0 or number == len(batches):
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()


def plain_constituents(name, case, rows, names, placements, initial):
    """Train every shard by itself; return its network by shard."""
    epochs, done = -(-2 * case.epochs // (case.slices + 1)), {}
    accumulate, clip = case.trainer.get("accumulate_grad_batches", 1), case.trainer.get("gradient_clip_val")
    for shard, last, members in reference.schedule(names, case.shards, case.slices, placements):
        torch.manual_seed(reference.seed_of(SEED, shard, last, 0, "stage"))
        if shard not in done:
            network = plain_network(initial)
            done[shard] = network, *optimizer_for(name, network)
        network, optimizer, scheduler = done[shard]
        for epoch in range(epochs):
            torch.manual_seed(reference.seed_of(SEED, shard, last, epoch, "train"))
            order = reference.epoch_order(members, SEED, shard, last, epoch)
            batches = reference.batches(order, 5, case.loader.get("drop_last", False))
            read = reader(name, rows, reference.seed_of(SEED, shard, last, epoch, "workers"))
            train_epoch(network, optimizer, read, rows.y, batches, accumulate, clip)
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
    probabilities = [network.eval()(Rows(seed=3).x).softmax(-1) for network in networks.values()]
    mean = torch.stack(probabilities).mean(0).log()
    torch.testing.assert_close(answers(trainer, module), mean)
