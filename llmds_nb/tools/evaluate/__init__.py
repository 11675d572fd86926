"""The command `evaluate`: ranking quality and latency on a judged set in the files of BEIR."""
