"""One poll of the execution history for everything that waits for something in it."""
