"""The commands `replay` and `workload`: traces of requests, replayed over the real structures."""
