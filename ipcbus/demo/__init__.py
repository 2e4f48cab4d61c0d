"""The demo: a chat, a ticker, their page and the self-check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipcbus.web.config import ServerConfig

__all__ = ["PAGE", "chat_config", "sqlite"]

PAGE = Path(__file__).with_name("page.html")
"""The page that ``/`` shows."""


def chat_config(
    transport: str = "auto:",
    bind: str = "127.0.0.1:8080",
    processes: int = 2,
    *,
    database: str,
    ticker: bool = False,
) -> ServerConfig:
    """Return the configuration of the demo.

    Args:
        transport: URL of the channels between front ends and services; ``{port}`` becomes a free port.
        bind: ``host:port``; port 0 picks a free one.
        processes: front ends.
        database: URL of the database that keeps what is said, as SQLAlchemy writes it.
        ticker: whether the ticker runs, too.
    """
    from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig
    from ipcbus.web.database import DatabaseConfig

    services = {"chat": ServiceConfig(factory="ipcbus.demo.chat:Chat")}
    if ticker:
        services["ticker"] = ServiceConfig(factory="ipcbus.demo.ticker:Ticker")
    return ServerConfig(
        services=services,
        front=FrontConfig(bind=bind, processes=processes, page=str(PAGE)),
        database=DatabaseConfig(url=database, connections=4),
        transport=transport,
    )


def sqlite(folder: str) -> str:
    """Return the URL of the demo's own database in a folder."""
    return f"sqlite:///{folder}/chat.db"
