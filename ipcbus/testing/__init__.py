"""What transports, and programs built on ipcbus, are tested with; shipped, so that plugins elsewhere use the same.

Modules: ``contract`` (one check per rule of :mod:`ipcbus.transport`, without pytest), ``cases`` (the same as pytest
classes), ``model`` (a hypothesis state machine), ``faults`` (processes killed at random instants), ``leaks`` (what a
test left behind), ``mutants`` (broken transports that the contract must catch). ``python -m ipcbus.testing URL`` runs
the contract and prints a table.
"""
