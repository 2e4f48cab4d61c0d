"""multiprocessing.Queue.put(lambda: 1) returns, and the item is lost."""


def test_send_raises_where_put_loses(tell, url, start_method):
    # The traceback is multiprocessing's own, printed by a thread of its queue: nobody could catch it.
    assert tell("vanished.py", url, start_method, errors="Can't pickle local object") == [
        "multiprocessing.Queue: put() returned",
        "multiprocessing.Queue: nothing ever came",
        "ipcbus: send() raised EncodeError",
        "received: the next message",
    ]
