"""Everything Numba compiles: functions on flat arrays; no classes, no files, no clock, no raise.

A module here imports only modules of a lower level (`tests/test_house.py` holds the levels).
Statuses that more than one module returns have one meaning everywhere; they are in `status`.
"""
