"""Prices are published by one process; others follow those that they want."""

from multiprocessing import Process

import ipcbus


def publish(address: str) -> None:
    bus = ipcbus.Bus.connect(address)
    for name, price in (("eu.dax", 18_700), ("us.dow", 39_100), ("eu.cac", 8_010)):
        bus.topic(f"prices.{name}").publish(price)
    bus.topic("prices.closed").publish(None)


def main() -> None:
    with (
        ipcbus.Bus() as bus,
        bus.topic("prices.eu.*").subscribe(capacity=100) as europe,
        bus.topic("prices.>").subscribe() as everything,
    ):
        publisher = Process(target=publish, args=(bus.address,))
        publisher.start()
        while (message := everything.recv_message(timeout=30)).body is not None:
            print("everything:", message.headers["topic"], message.body)
        publisher.join()
        print("europe:", europe.recv_many(10, timeout=0))
        print("dropped:", europe.dropped)


if __name__ == "__main__":
    main()
