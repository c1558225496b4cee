"""Other processes: each job runs in one of its own, which has imported the framework and seen nothing.

As a script it forks for each job before the framework has computed anything: TensorFlow cannot be forked later, and
to import it anew takes seconds.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from pybrush.record import Record
from tests.conformance.harness import INPUTS, KEY, SWITCH, Setup, TroubleError, ledger_of, load, table

ADAPTER = os.environ["PYBRUSH_ADAPTER"]


def fit(folder, setup, rows, weights=1, switch=None):
    """Fit some rows; return what the model holds then and what all constituents answer."""
    framework = load(ADAPTER)
    training = framework.training(folder, setup, rows, weights)
    SWITCH.set(**(switch or {}))
    training.fit()
    return told(framework, training, folder)


def unlearn(folder, setup, rows, asked, weights=9, switch=None):
    """Serve a request with a training that fitted nothing and has other weights; return what came of it."""
    framework = load(ADAPTER)
    training = framework.training(folder, setup, rows, weights)
    SWITCH.set(**(switch or {}))
    result = training.unlearn(**asked)
    counts = {name: getattr(result, name) for name in ("forgotten", "amended", "admitted", "method", "request")}
    return counts | told(framework, training, folder)


def identity(folder):
    """Fit, let a request fail, and return everything that no framework has a say in; weights come close."""
    framework, rows = load(ADAPTER), table()
    setup = Setup(network="watching", optimizer="plain", rate=0.1, has_subjects=True, has_days=True)
    training = framework.training(folder, setup, rows)
    training.fit()
    batches = [batch.tolist() for batch in framework.seen()]
    SWITCH.set("batch", 1)
    try:
        training.unlearn(subjects=[rows.subjects[3]])
    except TroubleError:
        SWITCH.set()
    with closing(Record.open(Path(folder) / "record", KEY)) as record:
        plan = {name: value for name, value in record.ledger.plan().items() if name not in OWN}
        plan["settings"].pop("inputs", None)  # Keras' own
        found = {"plan": plan, "named": record.plan.semantic["plan"], "weights": framework.constituents(record)}
        found["days"] = record.ledger.rows("SELECT name, day FROM samples ORDER BY name")
        found["stages"] = {
            (m.shard, m.slice): (m.rows, m.steps) for m in map(record.store.manifest, record.store.keys())
        }
        ledger = ledger_of(record)
    keys = ledger.pop("wanted")
    pending = (Path(folder) / "record" / "pending" / "1").read_bytes()
    return found | {"ledger": ledger, "stages wanted": len(keys), "batches": batches, "pending": pending}


OWN = ("adapter", "semantic", "semantic_digest", "initial_digest")
"""Values of the plan in which frameworks differ."""


def told(framework, training, folder):
    """Return what a training holds now."""
    with closing(Record.open(Path(folder) / "record", KEY)) as record:
        answers = framework.predict(record.aggregate(training.model), INPUTS)
    return {"weights": framework.weights(training.model), "answers": answers}


def on_record(folder, calls):
    """Call methods of the record, with neither model nor data; return what each returned."""
    with closing(Record.open(Path(folder) / "record", KEY)) as record:
        return [getattr(record, name)(**arguments) for name, arguments in calls]


JOBS = {"fit": fit, "unlearn": unlearn, "on_record": on_record, "identity": identity}


class Elsewhere:
    """Starts processes that have seen nothing.

    Args:
        adapter: which framework they import.
    """

    def __init__(self, adapter: str = ADAPTER):
        self._adapter = adapter
        self._process = None
        self._folder = tempfile.TemporaryDirectory()
        self._number = 0

    def do(self, job: str, /, **order: Any) -> Any:
        """Have a job done and return its answer; fails with the traceback of there."""
        return self.answer(self.start(job, **order))

    def killed(self, job: str, /, **order: Any) -> bool:
        """Have a job done and say whether its process was killed."""
        number = self.start(job, **order)
        status = self._status(number)
        return os.WIFSIGNALED(status)

    def start(self, job: str, /, **order: Any) -> int:
        """Start a job; return its number, for `answer`."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.conformance.elsewhere"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2], env={**os.environ, "PYBRUSH_ADAPTER": self._adapter},
            )  # fmt: skip
        self._number += 1
        place = Path(self._folder.name) / str(self._number)
        place.write_bytes(pickle.dumps((job, order)))
        self._say(f"start {place}")
        return self._number

    def answer(self, number: int) -> Any:
        """Wait for a job and return its answer."""
        status = self._status(number)
        place = Path(self._folder.name) / f"{number}.answer"
        assert place.exists(), f"the process ended with status {status} and gave no answer"
        answer = pickle.loads(place.read_bytes())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        """End the process that starts the others."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
        self._folder.cleanup()

    def _say(self, line):
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _status(self, number):
        self._say(f"wait {Path(self._folder.name) / str(number)}")
        return int(self._process.stdout.readline())


def do(place):
    """Do the job of a file, in a process of its own, and write its answer."""
    try:
        job, order = pickle.loads(place.read_bytes())
        answer = {"value": JOBS[job](**order)}
    except BaseException:  # noqa: BLE001 (whatever it is, the test has to see it)
        answer = {"error": traceback.format_exc()}
    place.with_name(place.name + ".answer").write_bytes(pickle.dumps(answer))
    os._exit(0)


def serve():
    """Do what Elsewhere asks for until its pipe is closed."""
    load(ADAPTER)
    answers, sys.stdout = sys.stdout, sys.stderr
    children = {}
    for line in sys.stdin:
        verb, place = line.split()
        if verb == "start":
            children[place] = os.fork()
            if children[place] == 0:
                do(Path(place))
        else:
            answers.write(f"{os.waitpid(children.pop(place), 0)[1]}\n")
            answers.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve()
