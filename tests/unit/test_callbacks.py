"""Callbacks: where they run, how they end, and that two processes that call each other do not wait for ever."""

import asyncio
import functools
import gc
import os
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor

import pytest

import ipcbus
from ipcbus.requests import callback as callbacks
from ipcbus.requests import inbox
from ipcbus.requests.worker import Worker

PATIENCE = 10


@pytest.fixture
def server(subject, askers):
    """A channel to a process that calls what it is sent."""
    channel = subject.open()
    child = subject.start(askers.serve, channel)
    child.hear()
    yield channel
    channel.shutdown()
    child.result()


def _call(server, callback, *args):
    return server.request(("call", callback, *args), PATIENCE)


class Owner:
    def thread(self):
        return threading.current_thread().name


def test_it_runs_on_one_thread_that_is_none_of_the_callers(server):
    with ipcbus.callback(Owner().thread) as callback:
        assert {_call(server, callback) for _ in range(5)} == {"ipcbus-callbacks"}
        assert callback() == threading.current_thread().name, "at home it is an ordinary call"
        assert callback.submit().result(PATIENCE) == "ipcbus-callbacks"


def test_it_runs_on_the_executor_of_its_owners_choice(server):
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor, ipcbus.callback(Owner().thread, on=executor) as callback:
        assert _call(server, callback).startswith("mine")


def test_an_executor_that_is_shut_down_tells_who_called(server):
    executor, go = ThreadPoolExecutor(1), threading.Event()
    with ipcbus.callback(go.wait, on=executor) as callback:
        waiting = [callback.submit(PATIENCE) for _ in range(3)]
        executor.shutdown(wait=False, cancel_futures=True)
        go.set()
        ends = [future.exception(PATIENCE) for future in waiting]
        assert isinstance(ends[-1], ipcbus.ChannelClosed), ends
        with pytest.raises(ipcbus.RemoteError, match="shutdown"):
            _call(server, callback, 0)


class _Silent(Executor):
    """Runs what it is given at once and returns nothing, as the executors of some programs do."""

    def submit(self, function, /, *args, **kwargs):
        function(*args, **kwargs)


def test_an_executor_that_returns_nothing_runs_it_all_the_same(server, caplog):
    with ipcbus.callback(len, on=_Silent()) as callback:
        assert _call(server, callback, "xy") == 2
        assert callback.submit("xyz").result(PATIENCE) == 3
        callback.post("x")
        callback.post(1)
    assert [record.exc_info[0] for record in caplog.records] == [TypeError], "of len(1), which nobody waits for"


@pytest.mark.parametrize("on", [3, "pool", object()], ids=["number", "text", "object"])
def test_what_nothing_can_run_on_is_refused_before_it_is_called(on):
    with pytest.raises(ipcbus.ConfigError, match="runs on an executor or an event loop, not on"):
        ipcbus.callback(len, on=on)


def _fail():
    raise ValueError("no")


def test_an_executor_that_breaks_tells_who_called(server):
    executor = ThreadPoolExecutor(1, initializer=_fail)
    with executor, ipcbus.callback(len, on=executor) as callback, pytest.raises(ipcbus.RemoteError, match="initializer"):
        _call(server, callback, "x")
    executor = ThreadPoolExecutor(1, initializer=_fail)
    with executor, ipcbus.callback(len, on=executor) as callback, pytest.raises(BrokenExecutor, match="initializer"):
        callback.submit("x").result(PATIENCE)


async def _name_of_loop(value):
    await asyncio.sleep(0)
    return value, threading.current_thread().name


def test_what_a_function_returned_is_none():
    with pytest.raises(TypeError, match=r"what f\(\) returns"):
        ipcbus.callback(3)


def test_a_coroutine_function_runs_on_the_loop(server):
    async def main():
        with ipcbus.callback(_name_of_loop) as callback:
            far = await asyncio.to_thread(_call, server, callback, 1)
            near = await callback.submit(2)
            return far, near

    name = threading.current_thread().name
    assert asyncio.run(main()) == ((1, name), (2, name))
    with pytest.raises(ipcbus.ConfigError, match="on which"):
        ipcbus.callback(_name_of_loop)
    with pytest.raises(ipcbus.ConfigError, match="event loop"):
        ipcbus.callback(_name_of_loop, on=ThreadPoolExecutor(1))


def test_a_loop_that_is_closed_tells_who_called(server, subject):
    """Of what it has begun, and of what it has not."""
    loop = asyncio.new_event_loop()
    begun = asyncio.Event()

    async def hang(value):
        begun.set()
        await asyncio.Event().wait()
        return value

    with ipcbus.callback(hang, on=loop) as callback:
        calls = [callback.submit(1)]
        loop.run_until_complete(begun.wait())
        calls.append(callback.submit(2))
        far = subject.thread(_call, server, callback, 3)
        until = time.monotonic() + PATIENCE
        while len(loop._ready) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        loop.close()
        gc.collect()  # what has begun is part of a cycle
        for call in calls:
            with pytest.raises(ipcbus.ChannelClosed, match="was closed before it ended"):
                call.result(PATIENCE)
        with pytest.raises(ipcbus.RemoteError, match="was closed before it ended"):
            far.result()
        with pytest.raises(ipcbus.ChannelClosed, match="is closed"):
            callback.submit(4)


def test_a_child_that_a_callback_forks_runs_none_of_those_that_wait_behind_it(server):
    reading, writing = os.pipe()
    queued = threading.Event()

    def fork():
        assert queued.wait(PATIENCE)
        child = os.fork()
        if not child:
            os._exit(server.request(("call", len, "abc"), PATIENCE))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with ipcbus.callback(fork) as forks, ipcbus.callback(functools.partial(os.write, writing, b"!")) as other:
        calls = [forks.submit(), other.submit(), other.submit()]
        queued.set()
        assert [call.result(PATIENCE) for call in calls] == [3, 1, 1]
    assert os.read(reading, 100) == b"!!"
    os.close(reading)
    os.close(writing)


def test_a_forked_child_that_lets_go_of_a_loop_leaves_its_callers_to_the_parent(monkeypatch):
    monkeypatch.setattr(callbacks._thread, "start_new_thread", lambda function, arguments: function(*arguments))
    ipcbus.callback(len).close()  # from the first one on forks are noticed
    reading, writing = os.pipe()

    class Answer:
        def waits(self):
            return True

        def fail(self, _error):
            os.write(writing, f"{os.getpid()}".encode())

    owed = callbacks._Owed(len, Answer())
    child = os.fork()
    if not child:
        del owed
        os._exit(0)
    os.waitpid(child, 0)
    del owed
    assert os.read(reading, 100).decode() == str(os.getpid())
    os.close(reading)
    os.close(writing)


async def test_at_home_its_own_loop_does_not_wait_for_itself():
    with ipcbus.callback(_name_of_loop) as callback:
        with pytest.raises(ipcbus.Unsupported, match="await submit"):
            callback(1)
        assert await callback.submit(1)


def test_at_home_it_waits_for_the_loop(subject):
    ready, loops = threading.Event(), []

    async def main():
        loops.append(asyncio.get_running_loop())
        stop = asyncio.Event()
        loops.append(stop)
        ready.set()
        await stop.wait()

    running = subject.thread(asyncio.run, main())
    assert ready.wait(PATIENCE)
    loop, stop = loops
    with ipcbus.callback(_name_of_loop, on=loop) as callback:
        assert callback(3)[0] == 3
    loop.call_soon_threadsafe(stop.set)
    running.result()
    with pytest.raises(ipcbus.ChannelClosed, match="closed"):
        callback(4)


def test_a_loop_that_ends_tells_who_called():
    async def main():
        started = asyncio.Event()

        async def hang():
            started.set()
            await asyncio.Event().wait()

        future = ipcbus.callback(hang).submit()
        await started.wait()
        return future

    future = asyncio.run(main())
    error = future.exception(PATIENCE)
    assert isinstance(error, asyncio.CancelledError), error


def test_a_function_that_exits_tells_who_called(server):
    with ipcbus.callback(functools.partial(exit, 3)) as callback, pytest.raises(ipcbus.RemoteError, match="SystemExit"):
        _call(server, callback)
    with ipcbus.callback(len) as callback:
        assert _call(server, callback, "four") == 4, "the thread of the callbacks ended with it"


def test_one_that_is_closed_is_called_no_more(server, caplog):
    callback = ipcbus.callback(len)
    callback.close()
    callback.close()
    with pytest.raises(ipcbus.RemoteError, match="was closed"):
        _call(server, callback, "x")
    server.request(("call", callback.post, "x"), PATIENCE)
    assert _logged(caplog, "nobody waits")


def _logged(caplog, text):
    done = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if text in caplog.text:
            return True
        done.wait(0.01)  # until the thread that receives has written it
    return False


def test_a_moment_in_which_nothing_can_be_received_is_survived(server, askers, no_descriptors, caplog):
    with ipcbus.callback(len) as callback:
        assert _call(server, callback, b"small") == 5
        with no_descriptors():
            waiting = server.submit(("call", askers.call_with_much, callback))
            _logged(caplog, "nothing can be received")
        assert waiting.result(PATIENCE) == 8 << 20
        assert _call(server, callback, b"again") == 5


def test_what_comes_home_is_the_same_object(server):
    with ipcbus.callback(len) as callback:
        assert server.request(("echo", callback), PATIENCE) is callback


def test_processes_that_call_each_others_callbacks_do_not_wait_for_each_other(subject, askers):
    """Deeper than each has threads for callbacks at first."""
    import os

    lent = subject.open()
    child = subject.start(askers.lend_ping, lent)
    other = lent.recv(timeout=PATIENCE)
    pid = child.hear()
    ping = askers.Ping()
    ping.own = ipcbus.callback(ping.call)
    assert other(7, ping.own) == [pid, os.getpid()] * 4
    started = ping.own.submit(6, other)
    assert started.result(PATIENCE) == [os.getpid(), pid] * 3 + [os.getpid()]
    child.say()
    child.result()


def test_while_one_waits_others_run_and_two_never_run_at_once(subject):
    worker, unanswered = Worker(), subject.open()
    running, most, order = [], [], []

    def step(name, future=None):
        running.append(name)
        most.append(len(running))
        if future is not None:
            running.remove(name)
            future.result(PATIENCE)
            running.append(name)
            most.append(len(running))
        order.append(name)
        running.remove(name)

    future = unanswered.submit("later")
    worker.submit(step, "waits", future)
    for number in range(20):
        worker.submit(step, number)
    unanswered.recv_message(PATIENCE).reply("now")
    done = threading.Event()
    worker.submit(done.set)
    assert done.wait(PATIENCE)
    assert worker.close(PATIENCE) == []
    assert [name for name in order if name != "waits"] == list(range(20))
    assert "waits" in order
    assert max(most) == 1


def test_who_stepped_aside_goes_on_before_what_has_not_begun():
    worker, go, came = Worker(), threading.Event(), threading.Event()
    ran, seen = [], []

    def waits():
        worker.begin_aside()
        go.wait(PATIENCE)
        seen.append(len(ran))
        worker.end_aside()
        seen.append(len(ran))
        came.set()

    def works():
        ran.append(1)
        if len(ran) == 10:
            go.set()
        if len(ran) < 2000 and not came.is_set():
            worker.submit(works)
        time.sleep(0.0005)  # its work

    worker.submit(waits)
    worker.submit(works)
    assert came.wait(PATIENCE)
    worker.close(PATIENCE)
    before, after = seen
    assert after - before < 200


def test_what_no_thread_could_be_had_for_is_not_done_later(monkeypatch):
    worker, done, ran = Worker(), threading.Event(), []

    def refuse(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            worker.submit(ran.append, "refused")
    worker.submit(ran.append, "taken")
    worker.submit(done.set)
    assert done.wait(PATIENCE)
    assert ran == ["taken"]
    assert worker.close(PATIENCE) == []


def test_a_worker_that_is_closed_gives_back_what_it_did_not_do():
    worker, go, begun = Worker(), threading.Event(), threading.Event()
    worker.submit(lambda: (begun.set(), go.wait(PATIENCE)))
    assert begun.wait(PATIENCE)
    worker.submit(len, "left")
    assert worker.close(0.05) == [(len, ("left",))]
    with pytest.raises(ipcbus.ChannelClosed):
        worker.submit(len, "late")
    go.set()
    assert worker.close(PATIENCE) == []


def test_a_request_in_a_handler_and_in_a_callback(server, subject):
    """Both may ask, of whomever, and wait."""
    here = subject.open()
    serving = subject.thread(here.serve, lambda message: 3 if message.body == 2 else server.request(("echo", 1), PATIENCE) + 1)
    assert here.request(1, PATIENCE) == 2
    with ipcbus.callback(lambda: here.request(2, PATIENCE)) as callback:
        assert _call(server, callback) == 3
    here.shutdown()
    serving.result()
    assert inbox.inbox().closed is False
