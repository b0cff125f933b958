"""Real processes, killed, stopped and cut off on purpose; a checker that reads the log afterwards."""
