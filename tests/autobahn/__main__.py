"""Run the Autobahn test suite against an echo service, through front ends and channels, and for the client.

    python tests/autobahn [--profile core] [--transport pipe:] [--client] [--reports FOLDER]

Without --transport and --client: over every transport, one after another, and then the client.

Exit status 0: no case failed, but those that are known; 1: some did; 2: the suite could not be run, and the last line says
why.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import monotonic

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE)  # processes of the server find the service there

import suite  # noqa: E402  it is beside this file

os.environ.update(suite.FRAGMENTS)  # before the library is imported, here and in children

import ipcbus  # noqa: E402  as just said
from ipcbus.demo.selfcheck import channel_url  # noqa: E402  as just said
from ipcbus.web import Incoming, connect  # noqa: E402  as just said
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig  # noqa: E402  as just said
from ipcbus.web.server import Server  # noqa: E402  as just said

LARGEST = 16 << 20
"""Bytes of the suite's largest message."""
UNLIMITED = ("message_rate", "byte_rate", "frame_rate", "accept_rate")
"""What would slow the suite down, or close its connections: it sends as fast as it can, and tens of thousands of fragments."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    profiles = ", ".join(suite.PROFILES)
    parser.add_argument("--profile", default="core", help=f"{profiles}, or cases: '7.*,9.1.*' (default: %(default)s)")
    parser.add_argument("--transport", action="append", help="URL of the channels between front ends and service")
    parser.add_argument("--client", action="store_true", help="test the client, whose messages go through channels as well")
    parser.add_argument("--reports", type=Path, help="keep the suite's reports in this folder")
    said = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="ipcbus-autobahn-") as scratch:
            everything = not said.transport and not said.client
            urls = said.transport or (transports() if everything else [])
            return run(urls, said.profile, said.reports or Path(scratch), client_too=said.client or everything)
    except suite.CannotRunError as error:
        print(f"the Autobahn suite was not run: {error}")
        return 2


def transports() -> list[str]:
    """Return a URL for each installed transport that crosses processes."""
    return [channel_url(scheme) for scheme in ipcbus.transports if ipcbus.transports.get(scheme).capabilities.crosses_processes]


def run(urls: list[str], profile: str, reports: Path, *, client_too: bool) -> int:
    suite.install()
    runs = [(url, partial(server, url)) for url in urls] + [("client", client)] * client_too
    failed = False
    for name, test in runs:
        began = monotonic()
        verdict = test(profile, reports / name.partition(":")[0])
        print(f"{name} {verdict} ({monotonic() - began:.0f} s)", flush=True)
        failed |= not verdict.ok
    return int(failed)


def server(url: str, profile: str, folder: Path) -> suite.Verdict:
    known = {field.name for field in dataclasses.fields(FrontConfig)}
    unlimited = {name: 0 for name in UNLIMITED if name in known}
    front = FrontConfig(bind="127.0.0.1:0", processes=2, max_size=LARGEST, write_limit=4 * LARGEST, **unlimited)
    config = ServerConfig(services={"echo": ServiceConfig("echo:Echo")}, front=front, transport=url)
    with Server(config) as running:
        return suite.test_server(f"ws://{running.address}/echo", profile, folder)


def client(profile: str, folder: Path) -> suite.Verdict:
    with suite.serving_clients(profile, folder) as url:
        (count,) = (item.data for item in visit(f"{url}/getCaseCount") if item.is_message)
        for case in range(1, int(count) + 1):
            visit(f"{url}/runCase?case={case}&agent=ipcbus", echo=True)
        visit(f"{url}/updateReports?agent=ipcbus")
    return suite.report(folder)


def visit(url: str, *, echo: bool = False) -> list[Incoming]:
    """Connect once, and return what came until the connection ended; echo every message if that is wanted."""
    came = []
    with (
        ipcbus.open("unix:") as feed,
        ipcbus.open("unix:") as back,
        connect(url, feed, back, run="thread", reconnect=False, max_size=LARGEST, open_timeout=60),
    ):
        while not came or came[-1].kind != "ended":
            came.append(feed.recv(timeout=60))
            if echo and came[-1].is_message:
                back.send(came[-1].data, timeout=60)
    return came


if __name__ == "__main__":
    sys.exit(main())
