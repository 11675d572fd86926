"""What drives the structures: corpora, questions, workloads, a discrete-event engine, reports.

The objects above know nothing of this folder; it uses their public methods only. Time is virtual
wherever requests are served, so every figure but wall-clock latencies repeats with the seed.
"""
