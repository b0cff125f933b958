"""The projection: folding, storing, following, rebuilding, reading."""
