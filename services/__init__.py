"""Services: the processes and their doors (HTTP, command line)."""
