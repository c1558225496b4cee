"""What the distribution promises about itself: a light import, pinned and explained dependencies."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "keras", "tensorflow", "hydra")


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements():
    """Return every direct requirement: base, extras, dev group and build system."""
    settings = pyproject()
    project = settings["project"]
    groups = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *settings["dependency-groups"].values(),
        settings["build-system"]["requires"],
    ]
    found = [Requirement(line) for group in groups for line in group]
    return [requirement for requirement in found if requirement.name != project["name"]]


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def reasons():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Why each dependency")
    return re.findall(r"^- `([^`]+)`: \S", section, flags=re.MULTILINE)


def test_importing_pybrush_brings_in_no_framework():
    program = f"import sys, pybrush; print(*sorted(set({FRAMEWORKS}) & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_every_direct_dependency_is_pinned_to_a_version_that_it_allows():
    pinned = pins()
    wrong = [
        str(requirement)
        for requirement in requirements()
        if pinned.get(requirement.name) is None
        or not requirement.specifier.contains(pinned[requirement.name], prereleases=False)
    ]
    assert not wrong


def test_nothing_is_pinned_that_is_not_a_direct_dependency():
    assert pins().keys() == {requirement.name for requirement in requirements()}


def test_every_direct_dependency_has_its_reason_in_the_design_page_and_no_other_has():
    named = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert sorted(reasons()) == sorted(named)


def test_the_extra_all_names_every_other_extra():
    extras = pyproject()["project"]["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == extras.keys() - {"all"}
