"""The page that describes the wire format shows real frames."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "reference" / "wire-format.md"


@pytest.mark.parametrize("name", ["json", "headers", "pickle-with-buffers", "checksum", "mac", "protobuf"])
def test_examples_are_golden_frames(name: str) -> None:
    golden = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
    blocks = re.findall(r"```\n(b5[0-9a-f\s]+)```", PAGE.read_text(encoding="utf-8"))
    assert golden[name]["frame"] in ["".join(block.split()) for block in blocks]
