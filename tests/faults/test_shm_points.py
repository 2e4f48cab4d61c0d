"""Every named fault point of the C code of shm: a process is killed, stopped and interrupted there, and the others go on."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLUGIN = HERE.parents[1] / "transports" / "ipcbus_shm"
POINTS = re.findall(r"^    POINT\((\w+)\)", (PLUGIN / "native" / "fault.h").read_text(), re.MULTILINE)

pytest.importorskip("ipcbus_shm")
pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="fault points are compiled in, and there is no gcc")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a trial with a build that has fault points."""
    place = tmp_path_factory.mktemp("faulty")
    package = place / "ipcbus_shm"
    package.mkdir()
    for file in PLUGIN.glob("*.py"):
        shutil.copy(file, package)
    built = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = sorted(map(str, (PLUGIN / "native").glob("*.c")))
    warnings = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-DIPCBUS_SHM_FAULTS"]
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run(["gcc", *warnings, include, "-shared", "-fPIC", *sources, "-o", str(built)], check=True, timeout=60)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, str(HERE / "shm_trial.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_all_points_are_tried(run):
    assert run().split() == POINTS


@pytest.mark.parametrize("action", ["kill", "stop", "raise"])
@pytest.mark.parametrize("point", POINTS)
def test_fault(run, point, action):
    run(point, action)
