"""The `pybrush` command from an empty folder: train, forget by file, verify; and everything that can go wrong.

What a user meets in a shell runs in processes of its own; the rest runs `main` in this one.
"""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import OmegaConf

from pybrush.app import main
from pybrush.errors import ConfigurationError, RecordError
from pybrush.record import Record
from pybrush.trust import Trust, check_targets
from pybrush_lightning import load_export
from pybrush_lightning.datasets import DigitsData
from pybrush_lightning.models import MLP
from tests.core.forging import forge

QUIET = ["trainer.enable_progress_bar=false", "hydra/job_logging=none", "hydra/hydra_logging=none"]
TINY = ["train", "experiment=digits_sisa", "trainer.max_epochs=1", *QUIET]
LOCKS = {"lock", "request.lock"}


def pybrush(folder, *words):
    """Run the command in a process of its own, as a shell does."""
    code = "import sys; from pybrush.app import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def snapshot(folder):
    """Return the bytes of every file in a folder; a lock file means nothing."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in LOCKS]
    return {str(path): path.read_bytes() for path in files}


def holding(folder, needles, spared=()):
    """Return the files below a folder that hold any of some strings, as text or in their name."""
    found = snapshot(folder)
    return sorted(
        name
        for name, data in found.items()
        if Path(name).name not in spared and any(n.encode() in data or n in name for n in needles)
    )


@pytest.fixture(scope="module")
def rows():
    """The training rows of the shipped digits."""
    return DigitsData().train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training; never written to."""
    folder = tmp_path_factory.mktemp("trained")
    with chdir(folder):
        assert main(TINY) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working folder with a copy of the training."""
    shutil.copytree(trained / "records", tmp_path / "records")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def forget(folder, lines, name="forget.txt"):
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return f"forget.file={name}"


def test_help_needs_no_framework(tmp_path):
    code = (
        "import sys; from pybrush.app import main\n"
        "words = ['--help'], ['train', '--help'], ['unlearn', '--help'], ['verify', '-h'], ['plan', '-h']\n"
        "words += (['info', '-h'], ['enqueue', '-h'])\n"
        "codes = [main(list(line)) for line in words]\n"
        "assert codes == [0, 0, 0, 0, 0, 0, 0], codes\n"
        "found = {'torch', 'lightning', 'pytorch_lightning', 'keras', 'tensorflow'} & set(sys.modules)\n"
        "assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("pybrush verify", "mnist5k", "experiment", "forget:", "allow:", "model_bytes:", "as_json:", "admit:"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_usage_is_shown_without_hydra(tmp_path):
    code = "import sys; from pybrush.app import main; main(['--help']); assert 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["verify", "record=here"]) == 1
    assert "pip install 'pybrush[hydra]'" in capsys.readouterr().err


def test_samples_and_a_person_are_forgotten_and_no_file_names_them_any_more(tmp_path, rows):
    loud = ["trainer.logger=true", "trainer.enable_checkpointing=true", "trainer.enable_progress_bar=false"]
    done = pybrush(tmp_path, "train", "experiment=digits_sisa", "trainer.max_epochs=2", *loud)
    assert done.returncode == 0, done.stderr
    assert "test/accuracy" in done.stdout and "pybrush unlearn record=records/digits" in done.stdout
    assert (tmp_path / "lightning_logs").is_dir() and (tmp_path / "outputs").is_dir()
    config = tmp_path / "records/digits/config.yaml"
    assert config.stat().st_mode & 0o777 == 0o600

    gone, person = [rows.ids[5], rows.ids[77], rows.ids[5]], rows.subjects[900]
    before = set(snapshot(tmp_path))
    words = ["unlearn", "record=records/digits", "guarantee=exact", "report=page.html"]
    done = pybrush(tmp_path, *words, forget(tmp_path, gone))
    assert done.returncode == 0, done.stderr
    assert "Exact" in done.stdout and "rows forgotten          │ 2" in done.stdout
    new = {Path(name).relative_to(tmp_path).parts[0] for name in set(snapshot(tmp_path)) - before}
    assert new <= {"forget.txt", "page.html", "records", "lightning_logs"}  # no output folder, no job log

    with chdir(tmp_path):
        words = ["unlearn", "record=records/digits", "forget.kind=subjects", forget(tmp_path, [person], "person.txt")]
        assert main(words) == 0
        assert main(["verify", "record=records/digits"]) == 0
    record = Record.open(tmp_path / "records/digits")
    assert record.samples().rows == 1500 - 2 - 50
    assert [request.state for request in record.requests] == ["sealed", "sealed"]
    record.close()
    theirs = [rows.ids[row] for row, owner in enumerate(rows.subjects) if owner == person]
    assert holding(tmp_path, [*gone, person, *theirs], spared={"forget.txt", "person.txt"}) == []
    assert len(holding(tmp_path, [*gone, person])) == 2


def test_a_dry_run_and_a_second_request_of_the_same_rows_change_nothing(here, rows, capsys):
    words = ["unlearn", "record=records/digits", forget(here, rows.ids[:2])]
    before = snapshot(here / "records")
    assert main([*words, "dry_run=true"]) == 0
    assert "dry run: nothing was touched" in capsys.readouterr().out
    assert snapshot(here / "records") == before
    assert main(words) == 0
    after, said = snapshot(here / "records"), capsys.readouterr()
    assert after != before and "rows forgotten          │ 2" in said.out
    assert "stage 1 of" in said.err
    assert main(words) == 0
    assert "forgotten before" in capsys.readouterr().out
    assert snapshot(here / "records") == after


def test_encrypted_stages_receipts_and_checkpoints_that_a_request_leaves(tmp_path, rows, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "callbacks.sisa.encrypt=true", "trainer.enable_checkpointing=true"]) == 0
    ring = tmp_path / "records/digits.keys"
    before = {path.name for path in ring.iterdir()}
    words = ["unlearn", "record=records/digits", forget(tmp_path, rows.ids[:2])]
    assert main([*words, "purge=list", "receipt=receipt.json"]) == 0
    told = capsys.readouterr().out
    for expected in ("keys destroyed", "files left that hold it", "incomplete: ", "receipt: receipt.json"):
        assert expected in told
    assert (
        before - {path.name for path in ring.iterdir()} and (tmp_path / "receipt.json").stat().st_mode & 0o777 == 0o600
    )
    assert main(["verify", "record=records/digits"]) == 1
    assert "record.settle()" in capsys.readouterr().err
    assert main(["info", "record=records/digits"]) == 0
    told = capsys.readouterr().out
    assert "key ring" in told and "of these left by a request" in told
    assert main([*words, "purge=keep"]) == 1 and "'delete' or 'list'" in capsys.readouterr().err
    assert main(words) == 0  # purge=delete, and nothing else is left to do
    assert "files removed" in capsys.readouterr().out
    ring.rename(tmp_path / "elsewhere")
    assert main(["verify", "record=records/digits", "receipt=receipt.json"]) == 0
    told = capsys.readouterr().out
    assert "of request 1, sealed: 2 rows" in told and "the key ring is not here" in told
    assert main(["unlearn", "record=records/digits", forget(tmp_path, rows.ids[3:4])]) == 1
    assert "digits.keys is not there" in capsys.readouterr().err
    record = Record.open("records/digits")
    assert [request.number for request in record.requests] == [1]
    record.close()


def test_rows_are_positions_in_the_training_data(here, rows, capsys):
    (here / "rows.txt").write_bytes(b"\xef\xbb\xbf3\r\n\r\n4\r\n3")  # as an editor on Windows writes it
    assert main(["unlearn", "record=records/digits", "forget.kind=rows", "forget.file=rows.txt"]) == 0
    assert "rows forgotten          │ 2" in capsys.readouterr().out
    (here / "ids.txt").write_bytes(b"\xef\xbb\xbf" + f"{rows.ids[3]}\r\n{rows.ids[4]}\r\n".encode())
    assert main(["unlearn", "record=records/digits", "forget.file=ids.txt", "dry_run=true"]) == 0
    assert "all 2" in capsys.readouterr().out


def test_nothing_missing_is_nothing_to_forget(here, capsys):
    assert main(["unlearn", "record=records/digits", "missing=true"]) == 0
    assert "no recorded row is absent" in capsys.readouterr().out


def test_another_folder_and_a_path_with_blanks_and_brackets_serve_as_well(here, tmp_path, monkeypatch, rows, capsys):
    place = here / "my records (old), it's one"
    place.mkdir()
    shutil.move(here / "records/digits", place / "digits")
    shutil.move(here / "records/digits.key", place / "digits.key")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    record = f"record=../{place.name}/digits"
    assert main(["unlearn", record, forget(elsewhere, [rows.ids[8]])]) == 0
    assert main(["verify", record]) == 0
    monkeypatch.setenv("HOME", str(place))
    assert main(["verify", "record=~/digits"]) == 0
    assert [path.name for path in elsewhere.iterdir()] == ["forget.txt"]
    assert not (here / "records/digits").exists()


REFUSED = {
    "an unknown id": (["{known}", "digits-99999-class-0"], [], "1 of 2 samples to forget are not in the record"),
    "an integer that is no id": (["17"], [], "1 of 1 samples"),
    "an unknown person": (["subject-9999-digits"], ["forget.kind=subjects"], "1 of 1 subjects"),
    "text where rows are meant": (
        ["{known}"],
        ["forget.kind=rows"],
        "1 of 1 lines of the forget file are not integers",
    ),
    "text where integers are meant": (["{known}"], ["forget.type=int"], "are not integers"),
    "an empty file": ([""], [], "names nothing"),
    "a file and missing": (["{known}"], ["missing=true"], "in one way"),
    "an unknown kind": (["{known}"], ["forget.kind=people"], "ids, subjects, rows"),
    "an unknown guarantee": (["{known}"], ["guarantee=strong"], "'exact'"),
    "a word for a yes": (["{known}"], ["dry_run=perhaps"], "not a valid bool"),
    "a page without a place": (["{known}"], ["report=nowhere/page.html"], "folder that exists"),
    "a folder for a page": (["{known}"], ["report=records"], "must be a file"),
    "ids on the command line": (["{known}"], ["+forget.ids=[{known}]"], "forget.file=FILE alone"),
    "several runs": (["{known}"], ["-m"], "-m is not for this command"),
    "a sweep": (["{known}"], ["method=auto,rebuild"], "method"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_touches_nothing_and_repeats_no_id(case, here, rows, capsys):
    lines, words, said = case
    known = rows.ids[30]
    file = forget(here, [line.format(known=known) for line in lines])
    before = snapshot(here)
    code = main(["unlearn", "record=records/digits", file, *(word.format(known=known) for word in words)])
    message = capsys.readouterr().err
    assert (code, said in message, "Traceback" in message) == (1, True, False), message
    assert known not in message and "99999" not in message
    assert snapshot(here) == before


def test_other_refusals_have_one_message_too(here, capsys):
    (here / "latin.txt").write_bytes(b"J\xfcrgen\n")
    for words, said in (
        (["unlearn", "record=nowhere", "forget.file=latin.txt"], "UTF-8"),
        (["unlearn", "record=nowhere", "forget.file=none.txt"], "none.txt cannot be read"),
        (["unlearn", "record=nowhere", forget(here, ["a"])], "there is no record in nowhere"),
        (["unlearn", "forget.file=forget.txt"], "say which record"),
        (["verify", "record=nowhere"], "there is no record in nowhere"),
        (["verify"], "say which record"),
        (["forget"], "plan, train, unlearn, enqueue, verify, export, info"),
        (["export", "record=records/digits"], "say where to"),
        (["export", "to=out"], "say which record"),
        (["train", "experiment=nothing"], "digits_sisa"),
        (["train", "bogus=1"], "bogus"),
        ([*TINY, "model._target_=no_such_module.Net", "callbacks.sisa.record=new"], "No module named 'no_such_module'"),
        (
            [*TINY, "callbacks.sisa.shards=0", "callbacks.sisa.record=new"],
            "pybrush train: shards must be a whole number",
        ),
        ([*TINY, "callbacks.sisa.ids=[ann,bob]", "callbacks.sisa.record=new"], "name the column"),
        ([*TINY, "~callbacks.sisa"], "callbacks=sisa"),
        ([*TINY, "adapter=abacus"], "pip install 'pybrush[abacus]'"),
        ([*TINY, "+trainer.max_time='00:01:00:00'", "callbacks.sisa.record=new"], "max_time"),
    ):
        assert main(words) == 1, words
        message = capsys.readouterr().err
        assert said in message and "Traceback" not in message, message
    assert not (here / "new").exists() and not (here / "nowhere").exists()


def test_debugging_shows_where_an_error_came_from(here, monkeypatch):
    monkeypatch.setenv("PYBRUSH_DEBUG", "1")
    with pytest.raises(RuntimeError, match="no record"):
        main(["verify", "record=nowhere"])


UNTRUSTED = {
    "not below a trusted module": "os.system",
    "reached through a trusted module": "torch.os.system",
    "a function": "torch.load",
    "a class reached through a trusted module": "torch.multiprocessing.Process",
    "a class that calls what it is told": "lightning.pytorch.cli.LightningCLI",
    "a name that begins alike": "torchery.Net",
    "no name": 3,
}


@pytest.mark.parametrize("target", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_configuration_builds_only_what_is_trusted(target, here, rows, capsys):
    path = here / "records/digits/config.yaml"
    config = OmegaConf.load(path)
    config.trainer.logger = [{"deep": {"_target_": target}}]
    path.write_text(OmegaConf.to_yaml(config))
    before = snapshot(here / "records")
    assert main(["unlearn", "record=records/digits", forget(here, rows.ids[:1])]) == 1
    message = capsys.readouterr().err
    assert "trainer.logger[0].deep" in message and f"allow=[{target}]" in message
    assert snapshot(here / "records") == before


def test_a_target_may_be_allowed_by_its_full_name():
    config, source = {"model": {"_target_": "torch.os.getcwd"}}, Path("config.yaml")
    check_targets(config, source, Trust(["torch"], (), ["torch.os.getcwd"]), get_object)
    with pytest.raises(ConfigurationError, match="at model"):
        check_targets(config, source, Trust(["torch"], (), ["torch.os.getcw"]), get_object)


@pytest.mark.parametrize("text", ["", "- model", "model: {}", "model: ["])
def test_a_configuration_that_is_damaged_is_named(text, here, rows, capsys):
    (here / "records/digits/config.yaml").write_text(text)
    before = snapshot(here / "records")
    assert main(["unlearn", "record=records/digits", forget(here, rows.ids[:1])]) == 1
    said = capsys.readouterr().err
    assert "records/digits/config.yaml" in said and "Traceback" not in said
    assert snapshot(here / "records") == before


OWN = """
from pathlib import Path
from pybrush.errors import TrainingError
from lightning.pytorch import Callback
from pybrush_lightning.models import MLP

def make(**options):
    return MLP(**options)

class Interruption(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if Path("stop").exists():
            raise KeyboardInterrupt
        if Path("fail").exists():
            raise TrainingError("the disk is full of bees")
"""


def test_an_interrupted_training_or_request_goes_on_when_it_is_run_again(tmp_path, monkeypatch, rows, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_code.py").write_text(OWN)
    own = ["model._target_=own_code.make", "+callbacks.stop={_target_: own_code.Interruption}"]
    request = ["unlearn", "record=records/digits", forget(tmp_path, rows.ids[:1])]
    (tmp_path / "stop").touch()
    held = signal.getsignal(signal.SIGINT)
    try:
        assert main([*TINY, *own]) == 130
        assert "same command goes on" in capsys.readouterr().err
        assert (tmp_path / "records/digits/config.yaml").is_file()
        assert main(["verify", "record=records/digits"]) == 2
        (tmp_path / "stop").unlink()
        assert main([*TINY, *own]) == 0
        assert main(["verify", "record=records/digits"]) == 0

        assert main(request) == 1
        assert "allow=[own_code.make]" in capsys.readouterr().err
        (tmp_path / "stop").touch()
        assert main([*request, "allow=[own_code]"]) == 130
        assert "Request 1" in capsys.readouterr().err
        assert main(["verify", "record=records/digits"]) == 2
        (tmp_path / "stop").rename(tmp_path / "fail")
        assert main([*request, "allow=[own_code]"]) == 1
        said = capsys.readouterr().err
        assert "full of bees" in said and "stays pending" in said and "Traceback" not in said
        (tmp_path / "fail").unlink()
        assert main([*request, "allow=[own_code.make,own_code.Interruption]"]) == 0
        assert main(["verify", "record=records/digits"]) == 0
    finally:
        signal.signal(signal.SIGINT, held)


def test_a_training_that_is_refused_leaves_the_configuration_of_the_record(here, capsys):
    before = snapshot(here / "records")
    assert main([*TINY, "model.hidden=32"]) == 1
    assert "Restore what was recorded" in capsys.readouterr().err
    assert snapshot(here / "records") == before
    assert main([*TINY, "trainer.log_every_n_steps=7"]) == 0  # of no consequence, and stored once the fit was accepted
    assert OmegaConf.load(here / "records/digits/config.yaml").trainer.log_every_n_steps == 7


def test_the_seed_decides_the_initial_weights(here):
    assert main([*TINY, "callbacks.sisa.record=again"]) == 0
    assert main([*TINY, "callbacks.sisa.record=other", "seed=1"]) == 0
    plans = [Record.open(folder).plan for folder in ("records/digits", "again", "other")]
    assert plans[0].initial_digest == plans[1].initial_digest != plans[2].initial_digest
    assert [plan.seed for plan in plans] == [0, 0, 1]


def test_a_record_that_names_samples_by_content_takes_people_and_rows(here, rows, capsys):
    words = ["unlearn", "record=content", "dry_run=true"]
    assert main([*TINY, "callbacks.sisa.record=content", "callbacks.sisa.ids=content"]) == 0
    assert main([*words, forget(here, rows.ids[:1])]) == 1
    assert "kind=subjects" in capsys.readouterr().err
    assert main([*words, "forget.kind=subjects", forget(here, rows.subjects[:1])]) == 0
    assert main([*words, "forget.kind=rows", forget(here, [0])]) == 0
    (here / "content/config.yaml").unlink()
    capsys.readouterr()
    assert main([*words, forget(here, rows.ids[:1])]) == 1
    assert "trainer.unlearn(forget=forget" in capsys.readouterr().err


def test_a_trial_run_records_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "trainer.fast_dev_run=true"]) == 0
    assert "nothing was recorded" in capsys.readouterr().out
    assert snapshot(tmp_path / "records") == {}


def test_a_folder_with_a_configuration_of_someone_else_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("mine: true\n")
    assert main([*TINY, "callbacks.sisa.record=."]) == 1
    assert "another folder" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"


def test_a_record_made_by_a_script_says_which_lines_to_use(here, rows, capsys):
    (here / "records/digits/config.yaml").unlink()
    before = snapshot(here / "records")
    words = ["unlearn", "record=records/digits", forget(here, rows.ids[:1]), "guarantee=exact"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "was made by a script" in said and rows.ids[0] not in said
    lines = said[said.index("import lightning") :]
    compile(lines, "lines", "exec")
    assert "SISA(record='records/digits'" in lines and "trainer.unlearn(ids=ids, guarantee='exact'" in lines
    assert main(["verify", "record=records/digits"]) == 0
    assert snapshot(here / "records") == before


def test_verify_tells_a_defect_from_what_is_unfinished(here, capsys):
    record = Record.open("records/digits")
    stage = here / "records/digits/stages" / record.graph()[0].key  # of a first slice, so no constituent
    record.close()
    shutil.move(stage, here / "aside")
    assert main(["verify", "record=records/digits"]) == 2
    assert "not finished" in capsys.readouterr().out
    shutil.move(here / "aside", stage)
    tensors = stage / "state.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert main(["verify", "record=records/digits"]) == 1
    assert tensors.parent.name in capsys.readouterr().err


def test_a_record_is_verified_in_three_depths_and_nothing_in_it_changes(here, rows, capsys):
    before = snapshot(here)
    assert main(["verify", "record=records/digits", "depth=manifests"]) == 0
    fast = capsys.readouterr().out
    assert "fit the graph" in fast and "whether the states have the bytes" in fast
    assert main(["verify", "record=records/digits"]) == 0
    assert "whether training leads to these states" in capsys.readouterr().out
    done = pybrush(here, "verify", "record=records/digits", "depth=replay")
    assert done.returncode == 0, done.stderr
    assert "bit_identical" in done.stdout and "1 of 4 trained again" in done.stdout
    assert done.stderr.index("within tolerance means") < done.stderr.index("is replayed")
    assert snapshot(here) == before


def test_replay_tells_a_stage_that_its_rows_do_not_lead_to(here, capsys):
    def changed(state):
        next(iter(state["module"]["parameters"].values())).view(-1)[0] += 0.01
        return state

    forge("records/digits", 1, 0, changed)
    before = snapshot(here)
    assert main(["verify", "record=records/digits"]) == 0
    words = ["verify", "record=records/digits", "depth=replay"]
    capsys.readouterr()
    assert main([*words, "stages=[[1,0]]"]) == 3
    said = capsys.readouterr().out
    assert "does not replay" in said and "module.parameters: 1 of" in said
    assert main([*words, "stages=[[1,0]]", "tolerance.absolute=0.1"]) == 0
    assert main([*words, "stages=[[0,0]]"]) == 0
    assert snapshot(here) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["depth=deep"], "depth must be one of manifests, digests, replay"),
        (["depth=replay", "stages=[[9,9]]"], "has no stages [(9, 9)]; there are (0, 0)"),
        (["depth=replay", "stages=some"], "stages must be 'touched', 'all' or pairs"),
        (["depth=replay", "tolerance.relative=-1"], "the relative tolerance must be a number of at least 0"),
    ],
)
def test_what_verify_cannot_mean_is_refused(here, words, said, capsys):
    assert main(["verify", "record=records/digits", *words]) == 1
    assert said in capsys.readouterr().err


def test_a_record_made_by_a_script_is_replayed_by_the_lines_that_are_shown(here, capsys):
    (here / "records/digits/config.yaml").unlink()
    assert main(["verify", "record=records/digits", "depth=digests"]) == 0
    assert main(["verify", "record=records/digits", "depth=replay", "stages=all", "tolerance.relative=0"]) == 1
    said = capsys.readouterr().err
    lines = said[said.index("import lightning") :]
    compile(lines, "lines", "exec")
    assert "SISA(record='records/digits'" in lines
    assert "stages='all', tolerance=Tolerance(absolute=1e-06, relative=0.0))" in lines


def test_the_model_is_exported_without_the_record_and_goes_with_its_samples(here, rows, capsys):
    (here / "records/digits/config.yaml").rename(here / "config.yaml")  # a record made by a script has none
    assert main(["export", "record=records/digits", "to=my models/digits"]) == 0
    assert "exported to" in capsys.readouterr().out
    assert main(["export", "record=records/digits", "to=my models/digits"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["export", "record=records/digits", "to=my models/digits", "overwrite=true"]) == 0
    place, images = here / "my models/digits", rows.images[:9]
    record = Record.open("records/digits")
    expected = record.aggregate(MLP(inputs=64)).eval()(images)
    record.close()
    assert torch.equal(load_export(place, MLP(inputs=64))(images), expected)
    (here / "config.yaml").rename(here / "records/digits/config.yaml")
    assert main(["unlearn", "record=records/digits", "guarantee=exact", forget(here, rows.ids[:9])]) == 0
    assert len(list(place.glob("*.safetensors"))) < 2
    with pytest.raises(RecordError, match="a request has removed it"):
        load_export(place, MLP(inputs=64))


def test_the_key_is_never_in_the_record_nor_in_what_is_said(here, rows, capsys):
    key = (here / "records/digits.key").read_bytes()
    (here / "records/digits.key").unlink()
    assert main(["unlearn", "record=records/digits", forget(here, rows.ids[:1])]) == 1
    said = capsys.readouterr().err
    assert "secret key" in said and key.hex() not in said
    assert not any(key in data for data in snapshot(here / "records").values())
    assert main(["verify", "record=records/digits"]) == 0


def test_integers_and_text_that_looks_like_them_are_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_rows.py").write_text(
        "from pybrush_lightning.datasets import DigitsData, NamedImages\n"
        "class Mixed(DigitsData):\n"
        "    train_rows = 300\n"
        "    def images(self):\n"
        "        rows = super().images()\n"
        "        rows.ids = [str(n) if n % 2 else n for n in range(298)] + [7, '8'] + rows.ids[300:]\n"
        "        return rows\n"
    )
    own = ["data._target_=own_rows.Mixed", "callbacks.sisa.shards=1", "callbacks.sisa.slices=1"]
    assert main([*TINY, *own]) == 0
    words = ["unlearn", "record=records/digits", "allow=[own_rows]", "guarantee=exact"]
    assert main([*words, forget(tmp_path, [4, 5])]) == 0
    capsys.readouterr()
    assert main([*words, forget(tmp_path, [4, 5]), "dry_run=true"]) == 0
    assert "all 2" in capsys.readouterr().out
    assert main([*words, forget(tmp_path, [7, 8])]) == 1
    assert "2 lines name an integer and a text" in capsys.readouterr().err
    assert main([*words, forget(tmp_path, [7, 8]), "forget.type=int"]) == 0
    assert main([*words, forget(tmp_path, [7, 8]), "forget.type=str"]) == 0
    record = Record.open("records/digits")
    assert record.samples().rows == 300 - 6
    record.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forget_file_that_may_not_be_read_is_named(here, capsys):
    forget(here, ["a"])
    (here / "forget.txt").chmod(0)
    assert main(["unlearn", "record=records/digits", "forget.file=forget.txt"]) == 1
    assert "forget.txt cannot be read" in capsys.readouterr().err
