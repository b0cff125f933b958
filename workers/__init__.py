"""Workers: claim tasks, run user code, report outcomes."""
