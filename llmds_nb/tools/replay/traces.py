"""Reads request traces as flat arrays: Mooncake JSONL, Azure LLM inference CSV, and our own JSONL.

Files may be gzipped, and pipes. They are read once, line by line, into the arrays of `Trace`, as
UTF-8 or, behind its mark, as UTF-16.

Mooncake   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]},
           one hash id for every block of tokens, the last may be partial; equal ids mean equal text
           up to the end of the block. Blocks are of 512 tokens in Mooncake's traces and of 16 in
           others: which power of two it is follows from the number of ids of a prompt.
Azure      TIMESTAMP,ContextTokens,GeneratedTokens; the texts are unknown, so no two requests share
           a prefix.
ours       {"arrival_ms": ms, "output_tokens": n, "tenant": 0} and one of
             "tokens": [...]                     the token ids themselves,
             "prompt": id, "prompt_tokens": n    the first n tokens of the text called `id`,
             "parts": [[id, n], ...]             such texts one after the other.
           `tenant` is optional. Token ids and text ids are unrelated; both are >= 0.

A request of 0 output tokens wants its prompt computed and nothing else. One of Mooncake's or of
Azure's without prompt tokens asks for nothing: it is left out, with a note.
"""

import csv
import gzip
import io
import json
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from llmds_nb._core.typing import Int32s, Int64s

from ..decoding import UTF16_MARKS
from ..errors import BadInput

BLOCK_SIZES = (512, 16, *(2**i for i in range(31) if i not in (4, 9)))  # the likelier ones first
AZURE_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
EXPECTED = (
    'a JSONL line with "hash_ids" (Mooncake) or "arrival_ms" (llmds-nb), or the CSV header '
    + ",".join(AZURE_HEADER)
)
_MAX_TOKENS = 2**31 - 1  # of one request, and of all distinct text together
_MAX_MS = 2**62 / 1e6


class Trace(NamedTuple):
    """Requests in the order of arrival.

    The prompt of request i is the concatenation of its parts j in ``indptr[i] .. indptr[i + 1]``,
    each the token ids ``start[j] .. start[j] + length[j]``. Different texts have disjoint ranges.
    """

    kind: str  # "mooncake", "azure" or "llmds"
    arrival_ns: Int64s  # [n], non-decreasing
    prompt: Int64s  # [n], tokens
    output: Int64s  # [n], tokens, 0 of a request that only prefills
    tenant: Int64s  # [n]
    indptr: Int64s  # [n + 1]
    start: Int32s  # [parts]
    length: Int32s  # [parts]
    notes: list[str]  # one line for each change that the reader made

    def __len__(self) -> int:
        return self.arrival_ns.size

    def tokens(self, first: int, stop: int) -> tuple[Int32s, Int64s]:
        """Prompts of requests first .. stop, as (int32[total], offsets int64[stop - first + 1])."""
        a, b = self.indptr[first], self.indptr[stop]
        lengths = self.length[a:b]
        ends = np.cumsum(lengths, dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(self.prompt[first:stop])])
        base = self.start[a:b] - (ends - lengths)  # in int32: above -2**31
        tokens = np.repeat(base.astype(np.int32), lengths)
        tokens += np.arange(tokens.size, dtype=np.int32)
        return tokens, offsets

    def prompts(self, max_tokens: int = 2**21) -> Iterator[tuple[int, Int32s]]:
        """Yield (request, tokens int32[n]) for all, expanding about `max_tokens` at a time."""
        for first, stop in self.chunks(max_tokens):
            tokens, offsets = self.tokens(first, stop)
            bounds = offsets.tolist()
            for i in range(stop - first):
                yield first + i, tokens[bounds[i] : bounds[i + 1]]

    def chunks(self, max_tokens: int = 2**21) -> Iterator[tuple[int, int]]:
        """Ranges (first, stop) of requests with at most `max_tokens` tokens, or of one request."""
        ends, first = np.cumsum(self.prompt), 0
        while first < len(self):
            before = int(ends[first - 1]) if first else 0
            stop = int(np.searchsorted(ends, before + max_tokens, "right"))
            yield first, max(stop, first + 1)
            first = max(stop, first + 1)

    def head(self, n: int) -> "Trace":
        """The first n requests."""
        n = min(n, len(self))
        parts = int(self.indptr[n])
        return Trace(
            self.kind, self.arrival_ns[:n], self.prompt[:n], self.output[:n], self.tenant[:n],
            self.indptr[: n + 1], self.start[:parts], self.length[:parts], self.notes,
        )  # fmt: skip


class _Columns:
    """Growing columns that a reader appends to, request by request.

    `block_sizes`: what the blocks of hash ids may have, after the lines so far. Of a request with
    such ids `length` has only the tokens of all, at the last; `spread` makes the lengths of them.
    """

    def __init__(self, block_size):
        self.block_sizes = BLOCK_SIZES if block_size is None else (block_size,)
        self.arrival_ns, self.output, self.tenant = array("q"), array("q"), array("q")
        self.indptr, self.part, self.length = array("q", [0]), array("q"), array("i")
        self.n_empty = 0  # requests without a prompt

    def end_request(self, arrival_ns, output, tenant=0):
        """Complete a request whose parts have been appended."""
        self.arrival_ns.append(arrival_ns)
        self.output.append(output)
        self.tenant.append(tenant)
        self.indptr.append(len(self.part))

    def arrays(self):
        """(arrival_ns, output, tenant, indptr, part, length) as arrays."""
        columns = self.arrival_ns, self.output, self.tenant, self.indptr, self.part, self.length
        return [np.frombuffer(column, column.typecode) for column in columns]

    def spread(self):
        """Make the lengths of blocks; return their size."""
        *_, indptr, _, length = self.arrays()
        size, last = self.block_sizes[0], indptr[1:] - 1
        tokens = length[last] - size * (np.diff(indptr) - 1)
        length[:] = size
        length[last] = tokens
        return size


def read(
    path: str | os.PathLike, *, limit: int | None = None, block_size: int | None = None
) -> Trace:
    """Read a trace, or its first `limit` requests; its first line tells the format.

    `block_size` is that of hash ids. Default: the power of two that fits all lines.

    BadInput if the file cannot be read, is in no known format, or has a broken line (named by
    number).
    """
    columns = _Columns(block_size)
    try:
        with open(path, "rb") as file:
            lines = _lines_of(file)
            head: list[str] = []
            while not (head and head[-1].strip()):
                head.append(next(lines, ""))
                if not head[-1]:
                    raise BadInput(f"{path}: empty; expected {EXPECTED}")
            kind, fill = _format(path, head[-1])
            fill(path, chain(head, lines), columns, math.inf if limit is None else limit)
    except OSError as error:  # also: not a valid gzip file
        raise BadInput(f"{path}: {error.strerror or error}") from None
    except EOFError as error:
        raise BadInput(f"{path}: {error}") from None
    if not columns.arrival_ns:
        raise BadInput(f"{path}: no requests in it")
    return _finish(path, kind, columns)


def _lines_of(file: BinaryIO) -> Iterator[str]:
    """The lines of an open file; characters that cannot be read are U+FFFD, which no number has."""
    stream: Any = file
    if stream.peek(2)[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=file)
    encoding = "utf-16" if stream.peek(2)[:2] in UTF16_MARKS else "utf-8-sig"
    return io.TextIOWrapper(stream, encoding, "replace", newline="")


def _format(path, line):
    if [name.strip(' "\r\n') for name in line.split(",")] == AZURE_HEADER:
        return "azure", _read_azure
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if isinstance(request, dict) and "hash_ids" in request:
        return "mooncake", partial(_read_json, _mooncake)
    if isinstance(request, dict) and "arrival_ms" in request:
        return "llmds", partial(_read_json, _ours)
    raise BadInput(f"{path}: unknown format: expected {EXPECTED}")


class _Wrong(Exception):
    """What is wrong with a line; the caller adds its number."""


def _read_json(fill, path, lines, columns, limit):
    """Append the request of each line by `fill`."""
    for number, line in enumerate(lines, 1):
        if len(columns.arrival_ns) >= limit:
            return
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            if type(request) is not dict:
                raise _Wrong("not a JSON object")
            fill(request, columns)
        except _Wrong as wrong:
            raise BadInput(f"{path}:{number}: {wrong}") from None
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}:{number}: not JSON: {error}") from None


def _natural(request, name, low=0, high=2**63 - 1):
    if name not in request:
        raise _Wrong(f'"{name}" is missing')
    return _in_range(request[name], f'"{name}"', low, high)


def _in_range(value, name, low, high):
    if type(value) is not int:
        raise _Wrong(f"{name} must be an integer, not {value!r:.60}")
    if not low <= value <= high:
        raise _Wrong(f"{name} must be in [{low}, {high}], not {value}")
    return value


def _time_ns(request, name):
    if name not in request:
        raise _Wrong(f'"{name}" is missing')
    value = request[name]
    if type(value) not in (int, float) or not 0 <= value <= _MAX_MS:  # NaN fails as well
        raise _Wrong(f'"{name}" must be milliseconds >= 0, not {value!r:.60}')
    return round(value * 1_000_000)


def _extend(columns, ids, name):
    """Append ids as parts; the caller appends their lengths."""
    if type(ids) is not list or not ids:
        raise _Wrong(f'"{name}" must be a list that is not empty, not {ids!r:.60}')
    try:
        columns.part.extend(ids)
    except (TypeError, OverflowError):
        raise _Wrong(f'"{name}" must hold integers in [0, 2**63 - 1]') from None
    if min(ids) < 0:
        raise _Wrong(f'"{name}" must hold integers >= 0, not {min(ids)}')


def _mooncake(request, columns):
    arrival = _time_ns(request, "timestamp")
    n = _natural(request, "input_length", 0, _MAX_TOKENS)
    output = _natural(request, "output_length", 0, _MAX_TOKENS)
    ids = request.get("hash_ids")
    if n == 0:
        columns.n_empty += 1
        return
    _extend(columns, ids, "hash_ids")
    sizes = columns.block_sizes
    if -(-n // sizes[0]) != len(ids) or len(sizes) > 1:
        columns.block_sizes = tuple(size for size in sizes if -(-n // size) == len(ids))
        if not columns.block_sizes:
            raise _Wrong(_misfit(n, len(ids), sizes))
    columns.length.extend([0] * (len(ids) - 1))
    columns.length.append(n)
    columns.end_request(arrival, output)


def _misfit(n, n_ids, sizes):
    if len(sizes) > 1:
        return f"{n} tokens in {n_ids} blocks: of no power of two each; give their --block-size"
    blocks = -(-n // sizes[0])
    return f"{n} tokens are {blocks} blocks of {sizes[0]}, not {n_ids}: is it another --block-size?"


def _ours(request, columns):
    arrival = _time_ns(request, "arrival_ms")
    output = _natural(request, "output_tokens", 0, _MAX_TOKENS)
    tenant = _natural(request, "tenant") if "tenant" in request else 0
    given = [name for name in ("tokens", "prompt", "parts") if name in request]
    if len(given) != 1:
        raise _Wrong(f'one of "tokens", "prompt" and "parts" is wanted, not {len(given)}')
    if given == ["tokens"]:
        before = len(columns.part)
        _extend(columns, request["tokens"], "tokens")
        if max(request["tokens"]) > _MAX_TOKENS:
            raise _Wrong(f'"tokens" must be at most {_MAX_TOKENS}')
        for j in range(before, len(columns.part)):
            columns.part[j] = -1 - columns.part[j]  # distinct from the ids of texts
        columns.length.extend([1] * (len(columns.part) - before))
    elif given == ["prompt"]:
        columns.part.append(_natural(request, "prompt"))
        columns.length.append(_natural(request, "prompt_tokens", 1, _MAX_TOKENS))
    else:
        parts = request["parts"]
        if type(parts) is not list or not parts:
            raise _Wrong(f'"parts" must be a list of [id, tokens], not {parts!r:.60}')
        for part in parts:
            if type(part) is not list or len(part) != 2:
                raise _Wrong(f'"parts" must hold pairs [id, tokens], not {part!r:.60}')
            id_, n = part
            if type(id_) is not int or not 0 <= id_ < 2**63:
                _in_range(id_, "the id of a part", 0, 2**63 - 1)
            if type(n) is not int or not 1 <= n <= _MAX_TOKENS:
                _in_range(n, "tokens of a part", 1, _MAX_TOKENS)
            columns.part.append(id_)
            columns.length.append(n)
    columns.end_request(arrival, output, tenant)


def _read_azure(path, lines, columns, limit):
    first = True
    epoch = datetime(1970, 1, 1)
    rows = csv.reader(lines, strict=True)
    try:
        for row in rows:
            if not row or (first and row[0].strip() == AZURE_HEADER[0]):
                continue
            if len(columns.arrival_ns) >= limit:
                break
            where = f"{path}:{rows.line_num}"
            if len(row) != len(AZURE_HEADER):
                raise BadInput(f"{where}: {len(AZURE_HEADER)} columns are wanted, not {len(row)}")
            try:
                # datetime has microseconds; the trace has one digit more.
                passed = datetime.fromisoformat(row[0].strip()[:26]).replace(tzinfo=None) - epoch
            except ValueError:
                raise BadInput(f"{where}: not a time: {row[0]!r:.60}") from None
            first = False
            lengths = []
            for name, text in zip(AZURE_HEADER[1:], row[1:], strict=True):
                if not text.strip().isascii() or not text.strip().isdigit():
                    raise BadInput(f"{where}: {name} must be an integer >= 0, not {text!r:.60}")
                if len(text.strip()) > 10 or int(text) > _MAX_TOKENS:
                    raise BadInput(f"{where}: {name} must be in [0, {_MAX_TOKENS}], not {text:.60}")
                lengths.append(int(text))
            if lengths[0] == 0:
                columns.n_empty += 1
                continue
            # A unique first token makes all pages of the request unique.
            columns.part.append(len(columns.arrival_ns) + 1)
            columns.length.append(1)
            if lengths[0] > 1:
                columns.part.append(0)
                columns.length.append(lengths[0] - 1)
            micros = (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds
            columns.end_request(micros * 1000, lengths[1])
    except csv.Error as error:
        raise BadInput(f"{path}:{rows.line_num}: {error}") from None


def _finish(path, kind, columns) -> Trace:
    """The trace in the order of arrival, with a range of token ids for every text."""
    notes = []
    if kind == "mooncake":
        size = columns.spread()
        if size != BLOCK_SIZES[0]:
            notes.append(f"hash ids of blocks of {size:,} tokens")
    arrival, output, tenant, indptr, part, length = columns.arrays()
    if kind == "azure":
        arrival -= arrival.min()
    if columns.n_empty:
        notes.append(f"{columns.n_empty:,} requests without prompt tokens are left out")
    n_prefill = int((output == 0).sum())
    if n_prefill:
        notes.append(f"{n_prefill:,} requests generate nothing: they end with their prompt")
    early = int((arrival[1:] < np.maximum.accumulate(arrival)[:-1]).sum())
    if early:
        notes.append(f"{early:,} requests stood after a later one: sorted by arrival")
        order = np.argsort(arrival, kind="stable")
        counts = np.diff(indptr)[order]
        ends = np.cumsum(counts)
        take = np.repeat(indptr[:-1][order] - (ends - counts), counts) + np.arange(part.size)
        part, length = part[take], length[take]
        arrival, output, tenant = arrival[order], output[order], tenant[order]
        indptr = np.concatenate([[0], ends])
    return from_parts(kind, arrival, output, tenant, indptr, part, length, notes, path)


def from_parts(
    kind: str,
    arrival_ns: Int64s,
    output: Int64s,
    tenant: Int64s,
    indptr: Int64s,
    part: Int64s,
    length: npt.NDArray[np.integer],
    notes: Sequence[str] = (),
    name: str | os.PathLike = "trace",
) -> Trace:
    """A Trace of requests whose prompts are parts (text id, length). O(parts log parts).

    BadInput if a prompt, or all distinct texts together, have more than 2**31 - 1 tokens.
    """
    ids, text = np.unique(part, return_inverse=True)
    longest = np.zeros(ids.size, np.int64)
    np.maximum.at(longest, text, length)
    ends = np.cumsum(longest)
    prompt = np.add.reduceat(length, indptr[:-1], dtype=np.int64)
    for what, tokens in (("all distinct texts", ends[-1]), ("a prompt", prompt.max())):
        if tokens > _MAX_TOKENS:
            raise BadInput(f"{name}: {what}: {tokens:,} tokens are more than {_MAX_TOKENS:,}")
    start = (ends - longest).astype(np.int32)[text]
    return Trace(
        kind, arrival_ns, prompt, output, tenant, indptr, start,
        length.astype(np.int32, copy=False), list(notes),
    )  # fmt: skip
