"""The example of README.md does what it says, on every transport between processes that needs no address."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "first_channel.py"


@pytest.fixture
def program():
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    return block


def test_the_example_is_a_file(program):
    assert program == EXAMPLE.read_text()


@pytest.mark.parametrize("url", ["pipe:", "queue:", "zmq:"])
def test_the_example_runs(program, url, tmp_path):
    if url == "zmq:":
        pytest.importorskip("zmq")
    file = tmp_path / "program.py"
    assert '"pipe:"' in program
    file.write_text(program.replace('"pipe:"', f'"{url}"'))
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=45, check=True)
    assert done.stdout == EXAMPLE.with_suffix(".txt").read_text()
    assert not done.stderr
