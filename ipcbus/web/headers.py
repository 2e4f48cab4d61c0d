"""Headers: what may be sent as one. No I/O."""

from __future__ import annotations

import re

__all__ = ["is_header"]

_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")
"""RFC 9110, section 5: what is neither would end the header, or could not be written at all."""


def is_header(name: str, value: str) -> bool:
    """Tell whether a name and a value can be sent as a header."""
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value))
