"""Objects to bytes and back: one small module per format."""

from ipcbus.serializers.base import Serializer, serializers

__all__ = ["Serializer", "serializers"]
