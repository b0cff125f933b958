"""The events room: rules, envelope, log, readers, bootstrap."""
