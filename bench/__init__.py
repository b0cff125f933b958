"""Benchmarks: each figure a median over several runs, beside a baseline that was measured in the same run."""
