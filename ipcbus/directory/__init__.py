"""The directory: a socket by which processes of one user hand each other what has descriptors, at any time.

A channel over pipes or queues *is* a handful of descriptors, and those can be had by inheritance, or through a Unix
socket from somebody who has them. A directory is that somebody: it keeps what was left with it, under a key, and gives a
copy to every process that asks. The home process of a :class:`ipcbus.Bus` keeps one for all; a process that shares
something without a bus keeps one of its own for as long as it lives.
"""
