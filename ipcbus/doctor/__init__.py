"""What ``ipcbus doctor`` finds out about this machine, without a terminal. Nothing here changes anything unasked."""
