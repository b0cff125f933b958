"""Helpers shared by the tests: bounded polling and a real nats-server."""
