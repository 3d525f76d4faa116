"""Benchmarks, run from the repository: `python -m bench.kernels`, `python -m bench.peers`, ..."""
