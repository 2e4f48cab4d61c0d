"""The wheel as users get it; ``nox -s wheel`` runs this as a script, far from the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ipcbus
from ipcbus.demo.selfcheck import channel_url

CONTRACT = """
import socket
from ipcbus.testing.cases import ChannelContract

def fresh(url):
    def make():
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return url.replace("{port}", str(probe.getsockname()[1]))
    return staticmethod(make) if "{port}" in url else url

"""
ONE = """
class Test_{number}(ChannelContract):
    url = fresh({url!r})
"""


def main(scratch: str) -> None:
    here = Path(ipcbus.__file__).resolve()
    assert here.is_relative_to(Path(scratch).resolve()), f"{here} is the checkout, not what was installed"
    command = Path(sys.executable).with_name("ipcbus")
    subprocess.run([command, "transports"], check=True, timeout=30)
    subprocess.run([command, "demo", "--check"], check=True, timeout=120)
    urls = [channel_url(scheme) for scheme in ipcbus.transports]
    suite = Path(scratch, "test_contract.py")
    suite.write_text(CONTRACT + "".join(ONE.format(number=number, url=url) for number, url in enumerate(urls)))
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--timeout", "60", str(suite)]
    raise SystemExit(subprocess.run([sys.executable, *words], check=False, timeout=600).returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
