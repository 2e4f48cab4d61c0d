"""Objects to bytes and back: one small module per format, found by name in one registry.

``get(name)`` returns a serializer's class, ``names()`` lists what is known, ``register(name, cls)`` adds one to this
process; an installed distribution adds one by an entry point in the group ``ipcbus.serializers``.
"""

from ipcbus.serializers.base import Serializer
from ipcbus.serializers.base import serializers as registry

__all__ = ["Serializer", "get", "names", "register", "registry"]

get = registry.get
"""Return the serializer class of a name."""
names = registry.names
"""Return every known name, sorted."""
register = registry.register
"""Add a serializer class under a name in this process."""
