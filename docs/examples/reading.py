"""A message for ``ipcbus bench``, as large as it is told."""

from dataclasses import dataclass


@dataclass
class Reading:
    sensor: str
    values: list[float]


def reading(size: int) -> Reading:
    return Reading("sensor-7", [21.5] * (size // 9))  # a float is nine bytes of a pickle
