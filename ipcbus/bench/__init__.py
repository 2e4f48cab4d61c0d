"""Measures channels, and what people use instead, on the machine at hand: the engine of ``ipcbus bench``."""
