"""What the processes of the tests of requests run."""

import os
import threading

import ipcbus
from ipcbus.directory import client as directory
from ipcbus.requests import asking, inbox

PATIENCE = 10


class Strange(Exception):
    """Pickles, and cannot be rebuilt."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


class Mute(Exception):
    """Has no text."""

    def __str__(self):
        raise ValueError("no text")


def handle(message):
    what, *rest = message.body
    if what == "echo":
        return rest[0]
    if what == "lock in it":
        raise ValueError("no", threading.Lock())
    if what == "strange":
        raise Strange(1, 2)
    if what == "unknown class":
        raise type("Nowhere", (Exception,), {"__module__": "no.such.module"})("lost")
    if what == "mute":
        raise Mute
    if what == "huge":
        return bytes(rest[0])
    if what == "huge error":
        raise ValueError("x" * rest[0])
    if what == "exit":
        raise SystemExit(5)
    if what == "twice":
        message.reply(1)
        try:
            message.reply(2)
        except ipcbus.Unsupported as error:
            rest[0].append(str(error))
        return None
    if what == "forward badly":
        rest[0].send((message.reply_to, threading.Lock()))
    if what == "keep":
        rest[0].append(message)
        message.reply_to.__reduce__()  # as if sent on: serve() leaves it alone
        return None
    if what == "lose the connection":
        directory.place(message.reply_to._way.home).close()  # as an interrupted call of the directory does
        message.reply_to.given = bool(rest)  # then serve() leaves it alone, and nobody answers
        return None
    if what == "hang":
        threading.Event().wait(3 * PATIENCE)
    if what == "pid":
        return os.getpid()
    return rest[0](*rest[1:])


def call_with_much(callback):
    return callback(bytes(8 << 20))


def serve(line, questions):
    line.say(os.getpid())
    questions.serve(handle)


def serve_and_survive(line, questions):
    line.say(os.getpid())
    try:
        questions.serve(handle)
    except SystemExit:
        line.hear()


def ask_inherited(line, questions, pending, callback):
    """In a forked child: what the parent had goes on there."""
    try:
        pending.result(PATIENCE)
    except ipcbus.ChannelClosed as error:
        line.say(str(error))
    line.say(questions.request(("pid",), PATIENCE))
    line.say(callback())


class Ping:
    """Calls back as deep as it is told."""

    def __init__(self):
        self.other = None

    def call(self, depth, other):
        return [os.getpid()] + (other(depth - 1, self.own) if depth else [])


def lend_ping(line, lent):
    ping = Ping()
    ping.own = ipcbus.callback(ping.call)
    lent.send(ping.own)
    line.say(os.getpid())
    line.hear()


def ask_without_reading(line, questions):
    """Ask often, and read nothing."""
    box = inbox.inbox(questions._end)
    futures = [asking.send(box, questions._end, ("echo", number), None, None) for number in range(3)]
    line.say(len(futures))
    line.hear(30)


def answer_once(line, channel):
    """Answer one request and end."""
    line.say("ready")
    message = channel.recv_message(PATIENCE)
    message.reply(message.body)


def let_go(line, channel):
    """Receive two requests, answer the second of them, and let go of the first."""
    line.say("ready")
    first = channel.recv_message(PATIENCE)
    channel.recv_message(PATIENCE).reply("second")
    line.hear()
    del first
    line.hear()


def take_a_handle(line, channel):
    """Receive a reply handle, and answer by it or let go of it."""
    line.say("ready")
    handle = channel.recv(PATIENCE)
    line.say("taken")
    if line.hear() == "answer":
        handle.send("by the other")
    del handle
    line.say("done")
    line.hear()


def answer_in_a_child(line, channel):
    """Receive a request, fork, and have the child answer once this process has let go of it."""
    line.say("ready")
    message = channel.recv_message(PATIENCE)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(reading, 1)
        message.reply("the child's")
        os._exit(0)
    del message
    os.write(writing, b"x")
    os.waitpid(pid, 0)
    line.hear()


def answer_here_and_open_there(line, here, there):
    """Answer one request from a channel and then open another one, and take nothing from it."""
    here.recv_message(PATIENCE).reply("here")
    line.hear()
    there.fileno()
    there.ready()
    line.say("open")
    line.hear()


def ask_twice(line, questions):
    """Say what became of a request and then of another one."""
    future = questions.submit("first")
    line.say("asked")
    for _ in range(2):
        line.say(_outcome(future))
        future = questions.submit("second")


def ask_and_dawdle(line, questions):
    """Take no reply in while a function that the first one calls waits for the others; say what became of them all."""
    inbox._CAPACITY = 2  # replies that may wait
    called, over = threading.Event(), threading.Event()

    def dawdle(_):
        called.set()
        over.wait(PATIENCE)

    first, send = prepared(questions, ("echo", 0))
    first.add_done_callback(dawdle)  # before it is sent: if it were done by now, this thread would dawdle
    send()
    assert called.wait(PATIENCE)
    futures = [questions.submit(("echo", 0)) for _ in range(8)]
    lost = futures[-1].exception(PATIENCE)
    over.set()
    line.say((repr(lost), [_outcome(future) for future in futures], questions.request(("echo", 1), PATIENCE)))


def hold_what_is_handed_on(line, others):
    """Answer the first request that another process handed on, and neither the next one nor any more."""
    line.say(os.getpid())
    _, reply_to = others.recv(PATIENCE)
    reply_to.send(os.getpid())
    _, held = others.recv(PATIENCE)
    directory.place(held._way.home).close()  # as an interrupted call of the directory does
    line.hear()


def prepared(questions, obj):
    """Return the future of a request that is not sent yet, and what sends it."""
    end = questions._end
    box = inbox.inbox(end)
    future = box.enter()
    frame = end.codec.encode_routed(obj, box.route, future.number)
    return future, lambda: end.open_sender().send(frame, PATIENCE)


def _outcome(future):
    try:
        return future.result(PATIENCE)
    except ipcbus.ChannelError as error:
        return type(error).__name__


def lend_pending(line, lent, questions):
    """Send a future that is not done, and a callback with a timeout."""
    lent.send((questions.submit("for another"), ipcbus.callback(len, timeout=0.2)))
    line.hear()


def wait_for_what_comes(line, lent):
    future = lent.recv(PATIENCE)
    future.done()  # it asks
    line.say("it came")
    line.say(_outcome(future))
