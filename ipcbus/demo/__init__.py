"""The chat: a service, its page and its self-check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipcbus.web.config import ServerConfig

__all__ = ["PAGE", "chat_config"]

PAGE = Path(__file__).with_name("page.html")
"""The page that ``/`` shows."""


def chat_config(transport: str = "auto:", bind: str = "127.0.0.1:8080", processes: int = 2) -> ServerConfig:
    """Return the configuration of the chat demo.

    Args:
        transport: URL of the channels between front ends and the chat service; ``{port}`` becomes a free port.
        bind: ``host:port``; port 0 picks a free one.
        processes: front ends.
    """
    from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig

    return ServerConfig(
        services={"chat": ServiceConfig(factory="ipcbus.demo.chat:Chat")},
        front=FrontConfig(bind=bind, processes=processes, page=str(PAGE)),
        transport=transport,
    )
