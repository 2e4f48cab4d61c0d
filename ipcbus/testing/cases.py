"""The contract as a pytest class: a new transport's test file needs a URL and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from ipcbus.errors import IpcbusError, TransportUnavailable
from ipcbus.testing.contract import Check, Subject, checks_for, methods_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from ipcbus.testing.subject import StartMethod

__all__ = ["ChannelContract"]


def _cases(url: str | Callable[[], str]) -> list[object]:
    try:
        capabilities = Subject(url).capabilities
    except TransportUnavailable as error:
        return [pytest.param(None, "fork", id="unavailable", marks=pytest.mark.skip(reason=str(error)))]
    except IpcbusError:
        return [pytest.param(None, "fork", id="unusable")]  # fails with the error, where a test's failure belongs
    cases: list[object] = []
    for check in checks_for(capabilities):
        for method in methods_for(check):
            name = check.name if check.scope != "start method" else f"{check.name}-{method}"
            cases.append(pytest.param(check, method, id=name))
    return cases


class ChannelContract:
    """Every check of the contract that a transport's capabilities ask for.

    >>> class TestMine(ChannelContract):
    ...     url = "mine:"
    """

    url: ClassVar[str | Callable[[], str]]
    """The channel URL; a static method that makes a fresh one where an address can be used by one channel only."""

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Make one test per check, and per start method where that matters."""
        if "check" in metafunc.fixturenames:
            assert metafunc.cls is not None
            metafunc.parametrize(("check", "start_method"), _cases(metafunc.cls.url))

    def test_contract(self, check: Check | None, start_method: StartMethod) -> None:
        """Keep the rule."""
        __tracebackhide__ = True
        with Subject(type(self).url, start_method) as subject:
            if check is None:
                raise AssertionError(f"{subject.capabilities} came too late: the transport could not be loaded at first")
            check.run(subject)
