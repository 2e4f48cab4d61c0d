"""Small pieces that several transports need: deadlines, wake-ups, claims, private directories, travelling descriptors.

Plugins may import this package beside ``ipcbus.transport``, ``ipcbus.errors`` and ``ipcbus.options``; so may outside
ones. Each module has one subject and knows nothing of channels.
"""
