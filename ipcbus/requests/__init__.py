"""Requests: what is asked through a channel, and answered; futures and callbacks, which are asked of a process."""
