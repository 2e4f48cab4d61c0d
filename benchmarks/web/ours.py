"""A server of ours, as a program: it says where it is and who its processes are, and again at each line that it reads.

python benchmarks/web/ours.py '{"transport": "unix:", "fronts": 2, "service": "rooms:Rooms", "path": "/chat", "front": {}}'
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from ipcbus.options import build
from ipcbus.web.config import FrontConfig, ServerConfig, ServiceConfig
from ipcbus.web.server import Server

UNLIMITED = {"accept_rate": 0, "per_address": 0}
"""A thousand connections a second from one machine are no attack here."""


def main(plan: dict) -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # the services' processes find theirs there
    known = {field.name for field in dataclasses.fields(FrontConfig)}
    unlimited = {name: value for name, value in UNLIMITED.items() if name in known}
    front = {"bind": "127.0.0.1:0", "processes": plan["fronts"], **unlimited, **plan["front"]}
    config = ServerConfig(
        services={"chat": ServiceConfig(plan["service"])},
        front=build(FrontConfig, front, "--front"),
        transport=plan["transport"],
        restarts=sys.maxsize,  # who measures what a kill costs may kill as often as it takes
    )
    with Server(config) as server:

        def tell() -> None:
            pids = {**server.pids, "supervisor": os.getpid()}
            print(json.dumps({"url": f"ws://{server.address}{plan['path']}", "pids": pids}), flush=True)

        tell()
        for _ in sys.stdin:
            tell()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
