"""The demo, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_forgets_a_person_and_one_more_image_and_has_the_bits_of_a_retrain(tmp_path):
    done = subprocess.run([sys.executable, DEMO, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "same bits as never having seen them: yes" in done.stdout
    assert "verify: clean, 9 stages, 3,949 rows" in done.stdout
    page = (tmp_path / "erasure-1.html").read_text(encoding="utf-8")
    assert "Erasure request 1" in page
    assert "person-17" not in page
