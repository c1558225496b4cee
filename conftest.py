"""What every test process of the repository shares: threads, Hypothesis, and the code blocks of the pages."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Before any test imports NumPy, torch or TensorFlow: two workers share two cores, and one thread more changes bits.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")
# TensorFlow tells every process that there is no GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from hypothesis import settings
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# No deadline, since shared cores make one example in a thousand slow; the same examples in every run.
settings.register_profile("pybrush", deadline=None, derandomize=True)
settings.load_profile("pybrush")

_page = ExitStack()


def begin_page(namespace: dict[str, Any]) -> None:
    """Give a page an empty working folder; its blocks run there one after another, like one script."""
    _page.enter_context(chdir(_page.enter_context(TemporaryDirectory())))
    namespace["__name__"] = "__main__"


def end_page(_: dict[str, Any]) -> None:
    """Go back to where the page began and remove its folder."""
    _page.close()


def run_with_keras(example: Example) -> None:
    """Run a block in the page's other process: one process does not test with two frameworks."""
    if "keras_process" not in example.namespace:
        script = Path(__file__).with_name("tests") / "docs" / "keras_blocks.py"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = _page.enter_context(subprocess.Popen([sys.executable, script], text=True, **pipes))  # type: ignore[call-overload]
        example.namespace["keras_process"] = process
    process = example.namespace["keras_process"]
    source = pad(example.parsed, example.line + example.parsed.line_offset)
    process.stdin.write(json.dumps({"source": source, "path": str(example.path)}) + "\n")
    process.stdin.flush()
    error = json.loads(process.stdout.readline() or '"the process died"')
    if error:
        raise AssertionError(error)


class Blocks(PythonCodeBlockParser):
    """Python blocks of a page; those that name Keras run in a process of their own."""

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in super().__call__(document):
            if "keras" in str(region.parsed):
                region.evaluator = run_with_keras
            yield region


pytest_collect_file = Sybil(
    parsers=[Blocks(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=begin_page,
    teardown=end_page,
).pytest()
