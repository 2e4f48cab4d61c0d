"""The bus: channels and topics that have names, and whatever else needs to find a process: replies, futures, callbacks."""
