"""Kernels that several domains use: statuses, hashing, a hash table, a d-ary heap, top-k."""
