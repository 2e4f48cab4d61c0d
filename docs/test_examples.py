"""The programs in examples/ print what lies beside them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent / "examples"


@pytest.mark.parametrize("shown", sorted(EXAMPLES.glob("*.txt")), ids=lambda path: path.stem)
def test_example(shown, tmp_path):
    done = subprocess.run(
        [sys.executable, shown.with_suffix(".py")], cwd=tmp_path, stdout=subprocess.PIPE, text=True, timeout=45, check=True
    )
    assert done.stdout == shown.read_text()


def test_every_program_has_its_output():
    programs = {path.stem for path in EXAMPLES.glob("*.py") if '__name__ == "__main__"' in path.read_text()}
    assert programs == {path.stem for path in EXAMPLES.glob("*.txt")}
