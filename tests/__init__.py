"""The tests; one folder per room, helpers in `tests.support`."""
