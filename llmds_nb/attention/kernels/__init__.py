"""Kernels: functions on flat arrays; no objects, no files, no clock, no raise."""
