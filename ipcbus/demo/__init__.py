"""The chat: a service, its page and its self-check."""
