"""Fuzzing of the device models: `python -m fuzz` runs them all, coverage-guided, by atheris.

An input is a program of accesses (`machine.py`) against one device (`targets.py`). What broke something once is kept in
`corpus/TARGET/` and replayed by the unit tests, which also run random programs with Hypothesis.
"""
