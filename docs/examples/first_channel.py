"""Two processes and two channels: numbers go there, their squares come back."""

from multiprocessing import Process

import ipcbus


def square(numbers: ipcbus.Channel, squares: ipcbus.Channel) -> None:
    for number in numbers:  # ends when the channel was shut down and is drained
        squares.send({"number": number, "square": number**2})
    squares.shutdown()


def main() -> None:
    with ipcbus.open("pipe:") as numbers, ipcbus.open("pipe:") as squares:
        worker = Process(target=square, args=(numbers.receiver, squares.sender))
        worker.start()
        for number in range(5):
            numbers.send(number)
        numbers.shutdown()
        for answer in squares:
            print(answer["number"], "squared is", answer["square"])
        worker.join()


if __name__ == "__main__":
    main()
