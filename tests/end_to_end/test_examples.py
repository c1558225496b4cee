"""The examples of Keras, run as a user runs them, under either backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
BACKENDS = ["tensorflow", pytest.param("torch", marks=pytest.mark.long)]


def run(script, folder, backend):
    """Run an example in an empty folder and return what it prints and the page of its request."""
    command, environment = [sys.executable, EXAMPLES / script, folder], os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "erasure.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example_of_images_has_the_bits_of_a_training_without_the_erased_ones(backend, tmp_path):
    told, page = run("keras_mnist.py", tmp_path, backend)
    assert "same bits as a training that never had them: yes" in told
    assert "verify: clean, 6 stages, 3,997 rows" in told
    assert "Erasure request 1" in page and "image-404" not in page


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example_of_a_table_erases_a_patient_in_another_process(backend, tmp_path):
    told, page = run("keras_tabular.py", tmp_path, backend)
    assert "erased patient-42: 4 rows" in told and "guarantee: Exact" in told
    assert "verify: clean, 4 stages, 396 rows" in told
    assert "Erasure request 1" in page and "patient-42" not in page
