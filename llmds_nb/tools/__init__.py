"""What drives the structures: corpora, questions, workloads, traces, replays, claims, reports.

The objects above know nothing of this folder; it uses their public methods, and `_stepping` and
`_lookahead`, which are there for replays. Time is virtual wherever requests are served, so every
figure but wall-clock latencies repeats with the seed.
"""
