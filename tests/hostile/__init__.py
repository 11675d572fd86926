"""Attacks on all structures, much of them nightly: damaged and edited files, killed saves."""
