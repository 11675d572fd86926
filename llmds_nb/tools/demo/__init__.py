"""The command `demo`: a RAG workload on real text, served on a virtual clock and judged."""
