"""The command line and what it runs: demo, index, search, replay, claims, reports and plots."""
