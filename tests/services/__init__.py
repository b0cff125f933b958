"""Tests of the services: HTTP, client, logs."""
