"""What every test process of the repository shares: threads, Hypothesis, and the code blocks of the pages."""

import os
from contextlib import ExitStack, chdir
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
from sybil import Sybil
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


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=begin_page,
    teardown=end_page,
).pytest()
