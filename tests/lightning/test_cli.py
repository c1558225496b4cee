"""SISA in a LightningCLI project of either package, and its subcommand `unlearn`.

Most tests run the command line in this process; the long one runs it as a user does.
"""

import importlib
import inspect
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pybrush.errors import ConfigurationError, ForgetError, MissingExtraError, RecordError
from pybrush.record import Record, states
from pybrush_lightning import SISA, Trainer
from tests.lightning.project import COMMANDS, command

IDS = ("sample-number-000003", "sample-number-000017")
KEY = bytes(32)
"""Under it no cell is empty, and the rows lie in a first slice and in the second one of the other shard."""

QUIET = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary", "enable_checkpointing")]
QUIET += ["--seed_everything=5", "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.num_nodes=1"]

pytestmark = [
    # Lightning 2.6 calls a name that jsonargparse has renamed.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*configure_optimizers. will be overridden:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder; the command line is not pytest's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by the command line, for good
        monkeypatch.setenv(name, "0")
    (tmp_path / "record.key").write_bytes(KEY)
    return tmp_path


def sisa(record="record", name="SISA", slices=2, **more):
    settings = {"shards": 2, "slices": slices, "record": record, "ids": "names", "subjects": "owners", **more}
    return [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in settings.items())]


def fit(project="lightning", *more, **settings):
    return command(project, args=["fit", *sisa(**settings), *QUIET, *more])


def unlearn(project="lightning", *words):
    """Serve a request with the configuration that the fit left in its log folder."""
    (config,) = Path("lightning_logs").rglob("config.yaml")
    return command(project, args=["unlearn", f"--config={config}", *words])


def stages_without(tmp_path, project="lightning", *more):
    """Return the keys of a fit without the rows, in an empty folder under the same key."""
    (tmp_path / "twin").mkdir()
    shutil.copy("record.key", "twin/record.key")
    fit(project, "--data.gone=[3,17]", "--trainer.default_root_dir=twin", *more, record="twin/record")
    return keys("twin/record")


def keys(folder):
    record = Record.open(folder)
    found = {stage.key for stage in record.graph()}
    assert found == record.store.keys()
    record.close()
    return found


def same_bits(one, other):
    a, b = Record.open(one), Record.open(other)
    built = a.store.keys()
    same = [states.same_bits(a.store.path(key), b.store.path(key)) for key in built]
    a.close(), b.close()
    return same and all(same)


def holding(folder, needles, spared):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name not in spared]
    return [path for path in files if any(n.encode() in path.read_bytes() or n in str(path) for n in needles)]


def test_every_argument_of_sisa_has_a_type_that_jsonargparse_reads():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SISA, "sisa", fail_untyped=True)
    read = parser.parse_args(
        ["--sisa.record=here", "--sisa.aggregate=vote", "--sisa.outputs=probs", "--sisa.ids=names"]
    )
    assert set(vars(read.sisa)) == set(inspect.signature(SISA).parameters)
    built = parser.instantiate_classes(read).sisa
    assert (built.how, built.space, built.naming.ids, built.shards) == ("vote", "probs", "names", None)


@pytest.mark.parametrize("name", ["SISA", "pybrush_lightning.SISA"])
@pytest.mark.parametrize("project", ["plain", "plain other"])
def test_a_lightning_cli_gains_sisa_by_its_name_on_the_command_line(project, name):
    done = fit(project, name=name)
    assert next(type(callback).__name__ for callback in done.trainer.callbacks) == "SISA"
    assert len(keys("record")) == 4


@pytest.mark.parametrize("project", ["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("optimizer", [[], ["--optimizer=Adam", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]])
def test_a_request_by_a_file_of_ids_ends_like_a_fit_without_the_rows(project, optimizer, tmp_path, capsys):
    fit(project, *optimizer)
    Path("ids.txt").write_text("\n".join(IDS))
    before = keys("record")
    done = unlearn(project, "--forget_file=ids.txt", "--guarantee=exact", "--report=page.html")
    assert done.result.forgotten == 2 and type(done.result.guarantee).__name__ == "Exact"
    said = capsys.readouterr().out
    assert "forgotten" in said and "report: page.html" in said and not any(name in said for name in IDS)
    assert "Erasure request 1" in Path("page.html").read_text()
    assert holding(tmp_path, IDS, spared={"ids.txt"}) == []
    assert len(list(tmp_path.rglob("config.yaml"))) == 1  # that of the fit
    assert keys("record") != before
    assert stages_without(tmp_path, project, *optimizer) == keys("record")
    assert same_bits("record", "twin/record")


def test_rows_persons_and_what_is_missing_are_forgotten_too(tmp_path):
    fit()
    assert unlearn("lightning", "--rows=[3, 17]", "--dry_run=true").result.notes[0].startswith("dry run")
    assert unlearn("lightning", "--rows=[3, 17]").result.forgotten == 2
    Path("people.txt").write_text("owner-number-000001\n")
    done = unlearn("lightning", "--forget_file=people.txt", "--forget_kind=subjects", "--data.gone=[3, 17]")
    assert done.result.forgotten == 4
    assert holding(tmp_path, ["owner-number-000001"], spared={"people.txt"}) == []
    gone = [3, 17, 1, 13, 25, 37, 40]
    assert unlearn("lightning", "--missing=true", f"--data.gone={gone}").result.forgotten == 1
    record = Record.open("record")
    assert record.verify().is_clean and record.samples().rows == 48 - 2 - 4 - 1
    record.close()


def test_what_waits_in_the_queue_and_what_is_too_old_are_served_too():
    fit()
    with closing(Record.open("record")) as record:
        record.enqueue(ids=IDS)
        done = unlearn("lightning", "--queued=true")
        assert (done.result.forgotten, done.result.entries) == (2, (1,))
        assert unlearn("lightning", "--before=2020-01-31").result.method == "none"
        assert record.verify().is_clean


def test_a_script_goes_on_with_the_record_of_a_command_line():
    from tests.lightning.project import Data, Net

    fit()
    callback = SISA(record="record", ids="names", subjects="owners")
    trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False)
    result = trainer.unlearn(ids=IDS[:1], model=Net(), datamodule=Data())
    assert result.forgotten == 1


REFUSED = {
    "nothing": ([], "in one way"),
    "two ways": (["--rows=[3]", "--forget_file=ids.txt"], "in one way"),
    "the queue and more": (["--queued=true", "--before=2020-01-31"], "in one way"),
    "rows and what is missing": (["--rows=[3]", "--missing=true"], "in one way"),
    "an empty file": (["--forget_file=empty.txt"], "names nothing"),
    "no file": (["--forget_file=none.txt"], "cannot be read"),
    "an unknown id": (["--forget_file=unknown.txt"], "1 of 1 samples"),
    "a checkpoint": (["--rows=[3]", "--ckpt_path=some.ckpt"], "from no checkpoint"),
    "a page without a place": (["--rows=[3]", "--report=nowhere/page.html"], "folder that exists"),
    "another guarantee": (["--rows=[3]", "--guarantee=strong"], "exact"),
}


def test_what_is_refused_touches_nothing_and_repeats_no_id(tmp_path):
    fit()
    Path("empty.txt").touch()
    Path("unknown.txt").write_text("digits-99999-class-0")
    Path("ids.txt").write_text(IDS[0])
    before = keys("record")
    for words, said in REFUSED.values():
        with pytest.raises(ValueError, match=said) as caught:
            unlearn("lightning", *words)
        assert isinstance(caught.value, (ForgetError, ConfigurationError))
        assert "99999" not in str(caught.value) and IDS[0] not in str(caught.value)
    assert keys("record") == before and len(list(tmp_path.rglob("config.yaml"))) == 1


def test_ids_are_no_option(capsys):
    fit()
    for option in ("ids", "subjects", "forget"):
        with pytest.raises(SystemExit):
            unlearn("lightning", f"--{option}=[ann]")
        assert f"--{option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("ids", "[ann, bob]"), ("subjects", "[ann, bob]"), ("key", "c2VjcmV0LW9mLXRoaXJ0eS10d28tYnl0ZXMtMTIzNA==")],
)
def test_a_fit_whose_configuration_would_hold_ids_or_the_key_is_refused(name, value, tmp_path):
    with pytest.raises(ConfigurationError, match=f"{name} of SISA would be written"):
        fit(**{name: value})
    assert [path.name for path in tmp_path.iterdir()] == ["record.key"]


def test_a_project_without_a_record_or_without_sisa_says_so(tmp_path):
    words = [*QUIET, "--rows=[3]"]
    with pytest.raises(RecordError, match="there is no record"):
        command("lightning", args=["unlearn", *sisa(), *words])
    with pytest.raises(ConfigurationError, match="with one SISA callback"):
        command("lightning", args=["unlearn", *words])
    assert not (tmp_path / "record").exists()


def test_a_trainer_without_unlearn_is_named_and_ours_serves_in_its_place(monkeypatch):
    fit()
    monkeypatch.delattr("lightning.pytorch.Trainer.unlearn")
    with pytest.raises(ConfigurationError, match=r"trainer_class=pybrush_lightning\.Trainer"):
        unlearn("lightning", "--rows=[3]")
    (config,) = Path("lightning_logs").rglob("config.yaml")
    words = ["unlearn", f"--config={config}", "--rows=[3]"]
    assert command("lightning", args=words, trainer_class=Trainer).result.forgotten == 1


@pytest.mark.parametrize(("module", "remedy"), [("jsonargparse", r"jsonargparse\[signatures\]"), ("rich", "rich")])
def test_a_missing_package_is_named(module, remedy, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == module else real(name, *more))
    monkeypatch.delitem(sys.modules, "pybrush_lightning.cli")
    with pytest.raises(MissingExtraError, match=f"pip install '{remedy}'"):
        importlib.import_module("pybrush_lightning.cli")


def test_importing_the_package_needs_no_jsonargparse():
    code = "import sys, pybrush_lightning; print('pybrush_lightning.cli' in sys.modules, 'jsonargparse' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.long
@pytest.mark.parametrize("project", ["lightning", "pytorch_lightning"])
def test_the_command_line_serves_in_processes_of_its_own(project, tmp_path):
    script = Path(inspect.getfile(COMMANDS["lightning"][1]))

    def run(*words):
        call = [sys.executable, "-c", f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"]
        done = subprocess.run([*call, project, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("fit", *sisa(), *QUIET)
    (config,) = Path("lightning_logs").rglob("config.yaml")
    Path("ids.txt").write_text("\n".join(IDS))
    before = keys("record")
    dry = run("unlearn", f"--config={config}", "--forget_file=ids.txt", "--dry_run=true")
    assert "would be forgotten" in dry and keys("record") == before
    assert "rows forgotten" in run("unlearn", f"--config={config}", "--forget_file=ids.txt")
    (tmp_path / "twin").mkdir()
    shutil.copy("record.key", "twin/record.key")
    run("fit", *sisa("twin/record"), *QUIET, "--data.gone=[3,17]", "--trainer.default_root_dir=twin")
    assert keys("twin/record") == keys("record") != before
    assert same_bits("record", "twin/record")
    assert holding(tmp_path, IDS, spared={"ids.txt"}) == []
    assert len(list(tmp_path.rglob("config.yaml"))) == 2
