"""Projections: DuckDB tables folded from the log, disposable and rebuilt at will."""
