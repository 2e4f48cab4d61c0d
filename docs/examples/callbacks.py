"""A service calls a method of an object that lives in another process, for every event."""

import os
from multiprocessing import Process
from typing import Any

import ipcbus


class Till:
    """Counts what is sold; lives in the main process and goes nowhere."""

    def __init__(self) -> None:
        self.sold = 0

    def note(self, what: str, price: int) -> int:
        self.sold += price
        print(f"{what} for {price}")
        return self.sold


def sell(orders: ipcbus.Channel) -> None:
    """The service: knows functions to call, and nothing of whose they are."""
    listeners = []

    def handle(message: ipcbus.Message) -> Any:
        if "listener" in message.body:
            listeners.append(message.body["listener"])
            return os.getpid()
        return [listener(message.body["what"], message.body["price"]) for listener in listeners]

    orders.serve(handle)


def main() -> None:
    till = Till()
    with ipcbus.open("auto:") as orders, ipcbus.callback(till.note, timeout=20) as listener:
        service = Process(target=sell, args=(orders,))
        service.start()
        assert orders.request({"listener": listener}, timeout=20) != os.getpid()
        for what, price in [("tea", 3), ("cake", 4)]:
            orders.request({"what": what, "price": price}, timeout=20)
        print("sold:", till.sold)
        orders.shutdown()
        service.join()


if __name__ == "__main__":
    main()
