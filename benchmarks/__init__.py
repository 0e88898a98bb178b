"""Benchmarks: what logging costs, measured beside something to compare it with in the same run.

`python -m benchmarks` runs them; `README.md` says what each of them measures and how.
"""
