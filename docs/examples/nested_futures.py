"""An actor answers with the future of another actor's answer, which is the future of a third's."""

from multiprocessing import Process
from typing import Any

import ipcbus


def act(name: str, questions: ipcbus.Channel, onward: ipcbus.Channel | None) -> None:
    def answer(message: ipcbus.Message) -> Any:
        path = [*message.body, name]
        return path if onward is None else onward.submit(path)  # not waited for: it travels

    questions.serve(answer)


def main() -> None:
    with ipcbus.open("auto:") as first, ipcbus.open("auto:") as second, ipcbus.open("auto:") as third:
        actors = [
            Process(target=act, args=("third", third, None)),
            Process(target=act, args=("second", second, third)),
            Process(target=act, args=("first", first, second)),
        ]
        for actor in actors:
            actor.start()
        of_second = first.request([], timeout=20)
        print("first answered with a future:", type(of_second).__name__)
        of_third = of_second.result(timeout=20)
        print("which brought a future:", type(of_third).__name__)
        print("which brought:", of_third.result(timeout=20))
        for channel in (first, second, third):
            channel.shutdown()
        for actor in actors:
            actor.join()


if __name__ == "__main__":
    main()
