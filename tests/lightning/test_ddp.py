"""SISA in two processes or more: rank 0 keeps the record, and what is trained is DDP.

Each launch imports torch in every process, so one launch answers many questions here.
"""

import copy
import json
import sys
from contextlib import closing
from functools import partial

import pytest
import torch
from torch import nn

from pybrush.errors import FingerprintError
from pybrush.record import Record
from tests import reference
from tests.lightning.launched import NAMES, free_port, fresh_fit, launch, noted, run, same
from tests.lightning.models import Net, Rows
from tests.lightning.test_bitwise import assert_same_record
from tests.lightning.twin import CASES, KEY, SEED, data_for, trainer_for

pytestmark = pytest.mark.timeout(900)  # processes that import torch, several times on two shared cores

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder and what two ranks noted: a fit, refusals, a dry run, a request, and answers before and after."""
    folder = tmp_path_factory.mktemp("ddp")
    steps = [
        ["fit"], ["state", "fitted"], ["seen"], ["answers", "before"],
        ["refused", "unknown", "unlearn", {"name": "none", "ask": {"ids": ["nobody"]}}],
        ["unlearn", "dry", {"ask": {"ids": NAMES, "dry_run": True}}], ["state", "after the dry run"],
        ["save", "whole.ckpt"],
        ["unlearn", "request", {"ask": {"ids": NAMES}}], ["state", "unlearnt"], ["answers", "after"],
        ["unlearn", "again", {"ask": {"ids": NAMES}}], ["save", "rebuilt.ckpt"],
        ["replay", "replayed", {"stages": "all"}], ["state", "after the replay"],
        ["replay_anew", "replayed anew"],
    ]  # fmt: skip
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "trainer": {"enable_checkpointing": True}}
    ranks = launch(folder, steps, validation=True, **settings)
    fresh = fresh_fit(folder / "fresh", folder / "initial.pt", validation=True, **settings)
    return folder, ranks, fresh


# What two processes make


def test_unlearning_on_two_ranks_has_the_bits_of_training_without_the_rows(told):
    folder, ranks, fresh = told
    assert ranks[0]["request"]["forgotten"] == 2 and ranks[0]["request"]["rebuilt"] > 0
    assert_same_record(folder, folder / "fresh")
    for rank in (0, 1):
        assert same(ranks[rank]["unlearnt"], fresh[rank]["state"])
        assert same(ranks[rank]["after: predicted"], fresh[rank]["answers: predicted"])
        assert ranks[rank]["after"] == fresh[rank]["answers"] != ranks[rank]["before"]


def test_every_rank_replays_what_the_ranks_trained_to_the_same_bits_and_holds_what_it_held(told):
    folder, ranks, _ = told
    with closing(Record.open(folder / "record", KEY)) as record:
        cells = [(stage.shard, stage.slice) for stage in record.graph()]
        touched = [tuple(cell) for cell in record.requests[-1].outcome["rebuilt"]]
    for facts in ranks:
        assert facts["replayed"] == [(*cell, "bit_identical", ()) for cell in cells]
        assert facts["replayed anew"] == [(*cell, "bit_identical", ()) for cell in touched]
        assert same(facts["after the replay"], facts["unlearnt"])
        assert facts["after the replay: trainer"] == facts["unlearnt: trainer"]


def test_every_rank_holds_the_constituent_and_gets_the_result(told):
    folder, ranks, _ = told
    record = Record.open(folder / "record", KEY)
    held = record.constituents()
    stored = record.store.load(held[max(held)])[0]["module"]
    for rank, facts in enumerate(ranks):
        assert same(facts["unlearnt"], {**stored["parameters"], **stored["buffers"]})
        assert facts["request"]["record"] == str(folder / "record")
        assert facts["request"]["guarantee"] == "Exact"
        assert facts["again"]["method"] == "none" and facts["again"]["answers"] is not None
        assert facts["dry"]["method"] == "rebuild" and facts["dry"]["answers"] is None
        assert same(facts["after the dry run"], facts["fitted"])
        assert facts["fitted: trainer"][0] == facts["unlearnt: trainer"][0] == 2
        torch.testing.assert_close(facts["after: predicted"], facts["request"]["answers"][rank:7:2])
    assert same(ranks[0]["request"], ranks[1]["request"])


def test_a_refusal_reaches_both_ranks_and_leaves_no_request(told):
    folder, ranks, _ = told
    assert ranks[0]["unknown"][0] == ranks[1]["unknown"][0] == "UnknownSamplesError"
    assert "1 of 1 samples" in ranks[1]["unknown"][1]
    assert [info.number for info in Record.open(folder / "record", KEY).requests] == [1]


def test_rank_0_alone_touches_the_record_and_its_key(told):
    folder, _, _ = told
    assert not list(folder.glob("record-of-rank-*"))
    assert not list(folder.glob("*.key*"))


def test_the_weights_move_in_every_stage(told):
    record = Record.open(told[0] / "record", KEY)
    for stage in record.graph():
        state = record.store.load(stage.key)[0]["module"]["parameters"]
        parent = record.store.load("initial" if stage.starts_shard else stage.parent)[0]["module"]["parameters"]
        assert all(not torch.equal(state[name], parent[name]) for name in state)


def test_ranks_end_each_stage_with_the_same_weights(told):
    _, ranks, _ = told
    assert ranks[0]["ends"] == ranks[1]["ends"]
    assert len(ranks[0]["ends"]) == 4 == len({str(end) for end in ranks[0]["ends"]})


def test_ranks_train_on_halves_of_each_epoch_and_draw_other_numbers(told):
    _, ranks, _ = told
    rows = Rows()
    names = [reference.pseudonym(KEY, b"s:" + name.encode()) for name in rows.names]
    shard, last, members = reference.schedule(names, 2, 2)[0]
    halves = [[], []]
    for rank, facts in enumerate(ranks):
        steps = len(reference.batches(list(range(-(-len(members) // 2))), 5))
        first_epoch = facts["seen"][:steps]
        assert {epoch for epoch, _, _ in first_epoch} == {0}
        halves[rank] = [value for _, batch, _ in first_epoch for value in batch]
    order = reference.epoch_order(members, SEED, shard, last, 0)
    assert halves[0] == rows.x[order[::2], 0].tolist()
    assert halves[1] == rows.x[[*order, order[0]][1 : 2 * len(halves[1]) : 2], 0].tolist()
    assert all(
        one[0] == other[0] and one[2] != other[2] for one, other in zip(*(f["seen"] for f in ranks), strict=True)
    )


def test_checkpoints_are_registered_by_rank_0_and_erased_with_their_stage(told):
    folder, _, _ = told
    record = Record.open(folder / "record", KEY)
    assert not (folder / "whole.ckpt").exists() and (folder / "rebuilt.ckpt").exists()
    held, stages = record.artefacts(), {stage.key for stage in record.graph()}
    last = [str(path.parent) for path in (folder / "checkpoints").rglob("last.ckpt")]
    assert len(last) == len(stages) and {held[path] for path in last} == stages
    assert str(folder / "rebuilt.ckpt") in held
    record.verify()


@pytest.mark.parametrize("call", ["fit", "unlearn"])
def test_one_process_does_not_serve_a_record_of_two(told, call):
    trainer = trainer_for(CASES["ids"], told[0])
    serve = {"fit": trainer.fit, "unlearn": partial(trainer.unlearn, ids=[Rows().names[5]])}[call]
    with pytest.raises(FingerprintError, match=r"trained by 2 processes.*devices=2, strategy='ddp'"):
        serve(model=Net(), **data_for(CASES["ids"]))


# Against plain torch


def plain_ddp(initial, rows, ranks, epochs):
    """Train as DDP does, in one process: mean gradients of all ranks, buffers of rank 0, own dropout on each.

    One shard, one slice; SISA's order and seeds are written again in tests/reference.py.
    """
    module = Net()
    module.load_state_dict(torch.load(initial, weights_only=True))
    network = module.net.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    members = [(reference.pseudonym(KEY, b"s:" + name.encode()), 0, row) for row, name in enumerate(rows.names)]
    for epoch in range(epochs):
        order = reference.epoch_order(members, SEED, 0, 0, epoch)
        each = -(-len(order) // ranks)
        shares = [[order[(rank + ranks * i) % len(order)] for i in range(each)] for rank in range(ranks)]
        cuts = [reference.batches(share, 5) for share in shares]
        seeds = [reference.seed_of(SEED, 0, 0, epoch, "train", rank) for rank in range(ranks)]
        drawn = [torch.Generator().manual_seed(seed).get_state() for seed in seeds]
        for batches in zip(*cuts, strict=True):
            optimizer.zero_grad()
            buffers = copy.deepcopy(dict(network.named_buffers()))
            for rank in reversed(range(ranks)):  # rank 0 last: its buffers are what all of them go on with
                for name, buffer in network.named_buffers():
                    buffer.copy_(buffers[name])
                torch.set_rng_state(drawn[rank])
                loss = nn.functional.cross_entropy(network(rows.x[batches[rank]]), rows.y[batches[rank]])
                (loss / ranks).backward()
                drawn[rank] = torch.get_rng_state()
            optimizer.step()
    return network.state_dict()


@pytest.mark.long
def test_one_shard_and_one_slice_on_two_ranks_equal_a_plain_loop_over_halves(tmp_path):
    launch(tmp_path, [["fit"]], sisa={"shards": 1, "slices": 1}, trainer={"max_epochs": 3})
    with torch.random.fork_rng():
        expected = plain_ddp(tmp_path / "initial.pt", Rows(), 2, 3)
    record = Record.open(tmp_path / "record", KEY)
    stored = record.store.load(record.constituents()[0])[0]["module"]
    tensors = {**stored["parameters"], **stored["buffers"]}
    assert tensors.keys() == {f"net.{name}" for name in expected}
    assert all(torch.equal(tensors[f"net.{name}"], value) for name, value in expected.items())


# Other ways to launch, and other trainings


@pytest.mark.long
def test_torchrun_and_a_request_in_new_processes_make_the_same_record_as_a_script(told, tmp_path):
    folder, ranks, _ = told
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "trainer": {"enable_checkpointing": True}}
    settings |= {"initial": folder / "initial.pt", "validation": True}
    launch(tmp_path, [["fit"]], TORCHRUN, **settings)
    own = {"max_epochs": 9, "accumulate_grad_batches": 3, "gradient_clip_val": 0.5}
    steps = [["begin_anew", own], ["unlearn_anew", "request", {"ask": {"ids": NAMES}}], ["state", "state"]]
    asked = launch(tmp_path, [*steps, ["answers", "after"]], **(settings | {"initial": tmp_path / "another.pt"}))
    assert_same_record(folder, tmp_path)
    for rank in (0, 1):
        assert same(asked[rank]["state"], ranks[rank]["unlearnt"])
        assert same(asked[rank]["request"]["answers"], ranks[rank]["request"]["answers"])
        assert asked[rank]["after"] == ranks[rank]["after"]


@pytest.mark.long
def test_two_ranks_serve_what_waits_in_the_queue(told, tmp_path):
    folder, ranks, _ = told
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "trainer": {"enable_checkpointing": True}}
    settings |= {"initial": folder / "initial.pt", "validation": True}
    launch(tmp_path, [["fit"]], **settings)
    with closing(Record.open(tmp_path / "record", KEY)) as record:
        for name in NAMES:
            record.enqueue(ids=[name])
    asked = launch(tmp_path, [["unlearn_anew", "request", {"ask": {"queued": True}}], ["state", "state"]], **settings)
    assert_same_record(folder, tmp_path)
    assert all(same(asked[rank]["state"], ranks[rank]["unlearnt"]) for rank in (0, 1))
    assert [asked[rank]["request"]["forgotten"] for rank in (0, 1)] == [2, 2]


@pytest.mark.long
def test_two_machines_make_the_record_that_two_processes_of_one_make(told, tmp_path):
    folder, ranks, _ = told
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "initial": folder / "initial.pt", "validation": True}
    settings["trainer"] = {"enable_checkpointing": True, "devices": 1, "num_nodes": 2}
    settings["steps"] = [["fit"], ["unlearn", "request", {"ask": {"ids": NAMES}}], ["state", "state"]]
    (tmp_path / "plan.json").write_text(json.dumps(settings, default=str))
    place = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    machine = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *place]
    asked = noted(tmp_path, run(tmp_path, [[*machine, "--node_rank", number] for number in "01"]), 2)
    assert_same_record(folder, tmp_path)
    assert all(same(asked[rank]["state"], ranks[rank]["unlearnt"]) for rank in (0, 1))


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_spawned_processes_leave_the_constituent_in_the_first_one_and_ddp_serves_their_record(strategy, tmp_path):
    settings = {"module": "Remembering", "callbacks": ["pushing"]}
    steps = [["fit"], ["state", "state"], ["answers", "answers"],
             ["refused", "request", "unlearn", {"name": "none", "ask": {"ids": NAMES}}]]  # fmt: skip
    facts = launch(tmp_path, steps, ranks=1, spawned=True, **settings, trainer={"strategy": strategy})[0]
    record = Record.open(tmp_path / "record", KEY)
    held = record.constituents()
    stored = record.store.load(held[max(held)])[0]["module"]
    assert same(facts["state"], {**stored["parameters"], **stored["buffers"]})
    assert facts["request"][0] == "UnsupportedError" and "strategy='ddp'" in facts["request"][1]
    assert record.requests == ()
    steps = [
        ["fit"],
        ["answers", "answers"],
        ["begin_anew", {"max_epochs": None}],
        ["unlearn_anew", "request", {"ask": {"ids": NAMES}}],
        ["limit", "own epochs"],
    ]
    served = launch(tmp_path, steps, **settings)
    assert served[0]["answers"] == facts["answers"]
    assert served[0]["own epochs"] is served[1]["own epochs"] is None
    fresh_fit(tmp_path / "fresh", tmp_path / "initial.pt", **settings)
    assert_same_record(tmp_path, tmp_path / "fresh")


VARIANTS = {
    "state in many places": {"module": "Remembering", "callbacks": ["pushing"], "sisa": {"slices": 3}},
    "draws before epochs begin": {"module": "Drawing"},
    "accumulation and clipping": {"trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.3}},
    "half precision": {"trainer": {"precision": "bf16-mixed"}, "loader": {"drop_last": True}},
    "early stop": {
        "module": "Watched", "callbacks": ["stopping"], "validation": True, "sisa": {"slices": 1, "shards": 3},
        "trainer": {"max_epochs": 6},
    },
    "plateau": {"module": "Plateau", "validation": True, "trainer": {"max_epochs": 4}},
    "workers": {
        "rows": "Noisy", "loader": {"num_workers": 2, "batch_size": 4}, "sisa": {"shards": 1, "content": "off"}
    },
    "data module": {"datamodule": True, "loader": {"shuffle": False}},
    "the other package": {"package": "pytorch_lightning", "module": "OtherNet"},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", VARIANTS)
def test_other_trainings_on_two_ranks_forget_to_the_bit(name, tmp_path):
    plan = VARIANTS[name]
    steps = [["fit"], ["unlearn", "request", {"ask": {"ids": NAMES}}], ["state", "state"], ["answers", "answers"]]
    ranks = launch(tmp_path, steps, **plan)
    fresh = fresh_fit(tmp_path / "fresh", tmp_path / "initial.pt", **plan)
    assert_same_record(tmp_path, tmp_path / "fresh")
    assert all(ranks[rank]["answers"] == fresh[rank]["answers"] for rank in (0, 1))


@pytest.mark.long
def test_three_ranks_forget_to_the_bit_in_whatever_order_a_sum_is_taken(tmp_path):
    plan = {"trainer": {"devices": 3}, "ranks": 3}
    launch(tmp_path, [["fit"], ["unlearn", "request", {"ask": {"ids": NAMES}}]], **plan)
    fresh_fit(tmp_path / "fresh", tmp_path / "initial.pt", **plan)
    assert_same_record(tmp_path, tmp_path / "fresh")


@pytest.mark.long
def test_another_setting_of_ddp_is_another_training(tmp_path):
    launch(tmp_path, [["fit"]])
    plan = {"trainer": {"strategy": "ddp_find_unused_parameters_true"}}
    for facts in launch(tmp_path, [["refused", "other", "fit"]], **plan):
        assert facts["other"][0] == "FingerprintError" and "find_unused" in facts["other"][1]


# Failures


@pytest.mark.long
@pytest.mark.parametrize("falls", ["1:1", "all:1"])
def test_a_record_survives_a_rank_that_falls_and_is_finished_by_the_next_launch(falls, told, tmp_path):
    folder, ranks, _ = told
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "trainer": {"enable_checkpointing": True}}
    settings |= {"validation": True, "initial": folder / "initial.pt"}
    assert "this batch cannot be trained on" in launch(tmp_path, [["fit"]], falls=falls, **settings)
    ask = {"ask": {"ids": NAMES}}
    again = launch(tmp_path, [["fit"], ["answers", "before"], ["unlearn", "request", ask]], **settings)
    assert again[0]["before"] == ranks[0]["before"]
    assert_same_record(folder, tmp_path)


@pytest.mark.long
def test_a_request_that_fails_goes_back_on_both_ranks_before_its_commit_and_forward_after_it(told, tmp_path):
    folder, _, _ = told
    ask = {"ask": {"ids": NAMES}}
    steps = [
        ["fit"], ["state", "before"],
        ["falls", "all:1"], ["refused", "early", "unlearn", {"name": "none", **ask}], ["falls", ""], ["state", "back"],
        ["collecting_fails", "late", ask], ["state", "committed"], ["save", "own.ckpt"], ["unlearn", "request", ask],
    ]  # fmt: skip
    settings = {"module": "Watched", "callbacks": ["checkpoint"], "trainer": {"enable_checkpointing": True}}
    ranks = launch(tmp_path, steps, initial=folder / "initial.pt", validation=True, **settings)
    record = Record.open(tmp_path / "record", KEY)
    held = record.constituents()
    stored = record.store.load(held[max(held)])[0]["module"]
    for facts in ranks:
        assert "this batch cannot be trained on" in facts["early"][1]
        assert same(facts["back"], facts["before"]) and not same(facts["committed"], facts["before"])
        assert same(facts["committed"], {**stored["parameters"], **stored["buffers"]})
    assert [facts["late"][0] for facts in ranks] == ["RuntimeError", "TrainingError"]
    assert "rank 0 failed with RuntimeError: the disk is gone" in ranks[1]["late"][1]
    assert [info.number for info in record.requests] == [1]
    assert_same_record(folder, tmp_path)
    assert record.artefacts()[str(tmp_path / "own.ckpt")] == held[max(held)]


@pytest.mark.long
def test_what_fails_on_rank_0_alone_is_raised_on_both_and_the_record_goes_on(tmp_path):
    steps = [["refused", "fit", "fit"], ["state", "state"]]
    ranks = launch(tmp_path, steps, module="Counting")
    for facts in ranks:
        assert facts["fit"][0] == "TrainingError" and "tally" in facts["fit"][1]
        assert same(facts["state"], ranks[0]["state"])
    initial = torch.load(tmp_path / "initial.pt", weights_only=True)
    assert all(torch.equal(ranks[0]["state"][name], value) for name, value in initial.items())


@pytest.mark.long
def test_a_record_of_one_process_is_not_served_by_two_and_the_refusal_is_the_same_on_both(tmp_path):
    trainer_for(CASES["ids"], tmp_path).fit(Net(), **data_for(CASES["ids"]))
    ask = {"name": "none", "ask": {"ids": NAMES}}
    for facts in launch(tmp_path, [["refused", "fit", "fit"], ["refused", "request", "unlearn_anew", ask]]):
        for name in ("fit", "request"):
            assert facts[name][0] == "FingerprintError" and "Trainer(devices=1)" in facts[name][1]


@pytest.mark.long
def test_a_request_on_a_missing_record_is_refused_on_both_ranks_and_a_fit_makes_one_key(tmp_path):
    ask = {"name": "none", "ask": {"ids": NAMES}}
    steps = [["refused", "request", "unlearn_anew", ask], ["fit"], ["state", "state"]]
    ranks = launch(tmp_path, steps, sisa={"key": None})
    assert [path.name for path in tmp_path.glob("*.key")] == ["record.key"]
    assert same(ranks[0]["state"], ranks[1]["state"])
    for facts in ranks:
        assert facts["request"][0] == "RecordError" and "fit with this SISA callback first" in facts["request"][1]


@pytest.mark.long
@pytest.mark.parametrize("rows", ["Split", "Fewer"])
def test_other_rows_on_another_rank_are_refused_on_both_before_anything_is_made(rows, tmp_path):
    sisa = {"ids": "content"} if rows == "Split" else {}
    for facts in launch(tmp_path, [["refused", "fit", "fit"]], rows=rows, sisa=sisa):
        assert facts["fit"][0] == "ConfigurationError" and "rank 1 holds other training rows" in facts["fit"][1]
    assert not (tmp_path / "record").exists()
