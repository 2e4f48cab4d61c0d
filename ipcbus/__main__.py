"""``python -m ipcbus``: the command ``ipcbus`` of the Python that is named."""

from ipcbus.cli import main

if __name__ == "__main__":  # processes that are started afresh import this module, too
    main()
