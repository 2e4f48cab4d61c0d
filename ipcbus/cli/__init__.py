"""The ``ipcbus`` command: one file per subcommand."""
