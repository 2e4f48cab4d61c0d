"""It could not be pickled, and nobody said which part."""


def test_the_sender_is_told_the_path_and_the_next_message_goes_through(tell, url, start_method):
    assert tell("which_part.py", url, start_method) == ["not sent, because of obj['client'].trace", "received: ada"]
