"""Traces: three formats give the same arrays; a broken line is named by its number."""

import gzip
import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, strategies as st

from llmds_nb.tools.errors import BadInput
from llmds_nb.tools.replay import replay, traces
from llmds_nb.tools.replay.arguments import Options

MOONCAKE = {"timestamp": 5, "input_length": 600, "output_length": 7, "hash_ids": [4, 9]}
OURS = {"arrival_ms": 1.5, "prompt": 3, "prompt_tokens": 4, "output_tokens": 2}
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def write(path, *requests):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
    path.write_text("\n".join(lines) + "\n")
    return path


def prompts(trace):
    return [tokens.tolist() for _, tokens in trace.prompts()]


def shape(sequences):
    """Token ids renumbered in the order of appearance; equal ones stay equal."""
    names = {}
    return [[names.setdefault(token, len(names)) for token in tokens] for tokens in sequences]


def test_mooncake_blocks_are_512_tokens(tmp_path):
    later = {"timestamp": 9, "input_length": 1024, "output_length": 1, "hash_ids": [4, 8]}
    trace = traces.read(write(tmp_path / "t", MOONCAKE, "", later))
    assert trace.kind == "mooncake" and len(trace) == 2
    assert trace.arrival_ns.tolist() == [5_000_000, 9_000_000]
    assert trace.prompt.tolist() == [600, 1024] and trace.output.tolist() == [7, 1]
    first, second = prompts(trace)
    assert first[:512] == second[:512] and not set(first[512:]) & set(second[512:])
    assert len(set(first)) == 600 and trace.notes == []


def test_azure_requests_share_nothing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "2023-11-16 18:17:04.0319600,3,8\r\n2023-11-16 18:17:03.9799600,1,9")
    trace = traces.read(path)
    assert trace.kind == "azure"
    assert trace.arrival_ns.tolist() == [0, 52_000_000]
    assert trace.prompt.tolist() == [1, 3] and trace.output.tolist() == [9, 8]
    one, three = prompts(trace)
    assert one[0] != three[0]
    assert trace.notes == ["1 requests stood after a later one: sorted by arrival"]


def test_the_three_ways_to_give_a_prompt(tmp_path):
    path = write(
        tmp_path / "t",
        {"arrival_ms": 0, "tokens": [7, 7, 5], "output_tokens": 1, "tenant": 6},
        {"arrival_ms": 0, "prompt": 7, "prompt_tokens": 2, "output_tokens": 1},
        {"arrival_ms": 2.25, "parts": [[7, 3], [8, 2]], "output_tokens": 1},
        {"arrival_ms": 2.25, "tokens": [5], "output_tokens": 1},
    )
    trace = traces.read(path)
    assert shape(prompts(trace)) == shape([[7, 7, 5], [100, 101], [100, 101, 102, 200, 201], [5]])
    assert trace.arrival_ns.tolist() == [0, 0, 2_250_000, 2_250_000]
    assert trace.tenant.tolist() == [6, 0, 0, 0]


def test_gzip_a_limit_and_a_head(tmp_path):
    path = tmp_path / "t"
    lines = "".join(json.dumps({**OURS, "prompt": i}) + "\n" for i in range(5))
    path.write_bytes(gzip.compress(lines.encode()))
    whole, part = traces.read(path), traces.read(path, limit=3)
    assert len(whole) == 5 and len(part) == 3
    assert prompts(whole.head(3)) == prompts(part) == prompts(whole)[:3]
    assert len(whole.head(9)) == 5


def test_late_lines_are_sorted_and_ties_keep_their_order(tmp_path):
    times = [30, 10, 20, 10, 40]
    path = write(
        tmp_path / "t", *({**OURS, "arrival_ms": t, "output_tokens": i + 1, "prompt": 9 - i,
        "prompt_tokens": i + 1} for i, t in enumerate(times))
    )  # fmt: skip
    trace = traces.read(path)
    assert trace.output.tolist() == [2, 4, 3, 1, 5]
    assert trace.prompt.tolist() == [2, 4, 3, 1, 5]
    assert len({tokens[0] for tokens in prompts(trace)}) == 5
    assert "3 requests" in trace.notes[0]


@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1), min_size=1))
def test_expanded_prompts_equal_the_plain_ones(requests):
    part, length = np.array([p for r in requests for p in r], np.int64).T
    indptr = np.cumsum([0, *map(len, requests)])
    n = len(requests)
    zeros, ones = np.zeros(n, np.int64), np.ones(n, np.int64)
    trace = traces.from_parts("llmds", zeros, ones, zeros, indptr, part, length)
    plain = [[100 * p + j for p, size in request for j in range(size)] for request in requests]
    assert shape(prompts(trace)) == shape(plain)
    assert trace.prompt.tolist() == [len(tokens) for tokens in plain]
    for most in (1, 10):
        assert [t.tolist() for _, t in trace.prompts(most)] == prompts(trace)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[1]", "2: not a JSON object"),
        ("[" * 100_000, "2: not JSON"),
        ({**OURS, "arrival_ms": -1}, '2: "arrival_ms" must be milliseconds >= 0, not -1'),
        ({**OURS, "arrival_ms": "soon"}, "not 'soon'"),
        ({**OURS, "arrival_ms": True}, "not True"),
        ({**OURS, "arrival_ms": float("nan")}, "not nan"),
        ({**OURS, "arrival_ms": 1e300}, "not 1e+300"),
        ({**OURS, "prompt_tokens": 0}, '2: "prompt_tokens" must be in [1, 2147483647], not 0'),
        ({**OURS, "output_tokens": -1}, '"output_tokens" must be in [0, 2147483647], not -1'),
        ({**OURS, "output_tokens": 1.5}, "must be an integer, not 1.5"),
        ({**OURS, "prompt": -1}, "not -1"),
        ({**OURS, "tenant": -1}, "not -1"),
        ({**OURS, "prompt": 2**63}, f"not {2**63}"),
        ({**OURS, "tokens": [1]}, 'one of "tokens", "prompt" and "parts" is wanted, not 2'),
        ({"arrival_ms": 1, "output_tokens": 1}, "is wanted, not 0"),
        ({"arrival_ms": 1, "output_tokens": 1, "tokens": []}, '"tokens" must be a list'),
        ({"arrival_ms": 1, "output_tokens": 1, "tokens": [1.5]}, "must hold integers"),
        ({"arrival_ms": 1, "output_tokens": 1, "tokens": [-2]}, "not -2"),
        ({"arrival_ms": 1, "output_tokens": 1, "tokens": [2**31]}, "at most"),
        ({"arrival_ms": 1, "output_tokens": 1, "parts": []}, "list of [id, tokens]"),
        ({"arrival_ms": 1, "output_tokens": 1, "parts": [[1]]}, "pairs [id, tokens], not [1]"),
        ({"arrival_ms": 1, "output_tokens": 1, "parts": [[1, 0]]}, "not 0"),
        ({"arrival_ms": 1, "prompt": 1, "prompt_tokens": 2}, '"output_tokens" is missing'),
        ({"output_tokens": 1, "prompt": 1, "prompt_tokens": 2}, '"arrival_ms" is missing'),
    ],
)  # fmt: skip
def test_broken_lines_are_named(tmp_path, line, message):
    path = write(tmp_path / "t.jsonl", OURS, line)
    with pytest.raises(BadInput, match=":2: ") as error:
        traces.read(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": -3}, "not -3"),
        ({"output_length": -1}, "not -1"),
        ({"input_length": 513, "hash_ids": [1]}, "513 tokens are 2 blocks of 512, not 1"),
        ({"hash_ids": []}, "not empty"),
        ({"hash_ids": None}, "not None"),
        ({"hash_ids": [1, -4]}, "not -4"),
        ({"hash_ids": [1, "x"]}, "integers"),
    ],
)
def test_broken_mooncake_lines_are_named(tmp_path, change, message):
    path = write(tmp_path / "t", MOONCAKE, {**MOONCAKE, **change})
    with pytest.raises(BadInput, match=":2: ") as error:
        traces.read(path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("yesterday,3,4", "not a time: 'yesterday'"),
        ("2023-11-16 18:17:03,3", "3 columns are wanted, not 2"),
        (f"2023-11-16 18:17:03,3,{2**31}", "GeneratedTokens must be in [0, 2147483647]"),
        ("2023-11-16 18:17:03,-3,4", "must be an integer >= 0, not '-3'"),
        ("2023-11-16 18:17:03,3.5,4", "must be an integer >= 0, not '3.5'"),
        ('"2023-11-16 18:17:03,3,4', "unexpected end of data"),
    ],
)
def test_broken_azure_rows_are_named(tmp_path, row, message):
    path = tmp_path / "t"
    path.write_text(HEADER + row)
    with pytest.raises(BadInput, match=":2: ") as error:
        traces.read(path)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b,c\n1,2,3\n", b'{"x": 1}\n', b"\xff\xfe\n",
                                     b"\x1f\x8bnot gzip", b"3\n", HEADER.encode()])  # fmt: skip
def test_unknown_formats_are_refused_with_the_expected_ones(tmp_path, content):
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=str(path)) as error:
        traces.read(path)
    if content in (b"", b"a,b,c\n1,2,3\n", b'{"x": 1}\n', b"3\n"):
        for word in ("Mooncake", "arrival_ms", "TIMESTAMP"):
            assert word in str(error.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BadInput, match=str(path)):
            traces.read(path)


def test_too_much_text_is_refused(tmp_path):
    half = {**OURS, "prompt_tokens": 2**30 + 9}
    path = write(tmp_path / "t", half, {**half, "prompt": 8})
    with pytest.raises(BadInput, match="all distinct texts"):
        traces.read(path)


@pytest.mark.parametrize("size", [1, 16, 64, 512, 4096])
def test_the_size_of_blocks_follows_from_the_numbers_of_ids(tmp_path, size):
    lengths = [3, 5 * size, 5 * size - 1, 7 * size + 1, 2 * size]
    requests = [
        {**MOONCAKE, "input_length": n, "hash_ids": list(range(-(-n // size)))} for n in lengths
    ]
    given, found = (
        traces.read(write(tmp_path / "t", *requests), block_size=b) for b in (size, None)
    )
    assert prompts(found) == prompts(given) and found.prompt.tolist() == lengths
    for tokens in prompts(found)[1:]:
        assert tokens[: 2 * size] == prompts(found)[-1][: len(tokens)]
    assert found.notes == ([] if size == 512 else [f"hash ids of blocks of {size:,} tokens"])


def test_prompts_of_one_block_each_have_any_size(tmp_path):
    long = {**MOONCAKE, "input_length": 70_000, "hash_ids": [1]}
    short = {**MOONCAKE, "input_length": 30, "hash_ids": [1]}
    trace = traces.read(write(tmp_path / "t", long, short))
    first, second = prompts(trace)
    assert first[:30] == second and len(first) == 70_000


def test_other_block_sizes_are_to_be_given(tmp_path):
    requests = [{**MOONCAKE, "input_length": 100 * n, "hash_ids": list(range(n))} for n in (7, 9)]
    path = write(tmp_path / "t", *requests)
    with pytest.raises(BadInput, match=r"t:1: 700 tokens in 7 blocks: .* --block-size"):
        traces.read(path)
    assert traces.read(path, block_size=100).length.tolist() == [100] * 16
    with pytest.raises(BadInput, match="t:1: 700 tokens are 4 blocks of 200, not 7"):
        traces.read(path, block_size=200)


@pytest.mark.parametrize("batching", ["continuous", "static"])
@pytest.mark.parametrize("cache_only", [False, True])
def test_a_request_without_output_only_prefills(tmp_path, batching, cache_only):
    azure = tmp_path / "t.csv"
    azure.write_text(HEADER + "2023-11-16 18:17:03,5,0\r\n2023-11-16 18:17:04,5,3\r\n")
    mooncake = write(tmp_path / "m", {**MOONCAKE, "output_length": 0}, MOONCAKE)
    ours = write(tmp_path / "o", {**OURS, "output_tokens": 0}, OURS)
    for path in (azure, mooncake, ours):
        trace = traces.read(path)
        assert trace.notes == ["1 requests generate nothing: they end with their prompt"]
        options = Options(
            cache_only=cache_only, pages=8, page_size=512, batching=batching, max_running=1
        )
        result = replay.run(trace, options)
        assert result["conditions"]["output_tokens"] == trace.output.sum() == trace.output[1]
        if not cache_only:
            serving = result["serving"]
            assert serving["finished"] == 2 and sum(result["refused"].values()) == 0
            seconds = serving["virtual_seconds"]
            assert serving["tokens_per_s"] == pytest.approx(trace.output[1] / seconds)


def test_the_shared_traces(shared_data):
    conversation = traces.read(shared_data / "traces" / "mooncake_conversation_trace.jsonl.gz")
    assert len(conversation) == 12_031 and conversation.start.size == 288_500
    code = traces.read(shared_data / "traces" / "AzureLLMInferenceTrace_code.csv")
    assert len(code) == 8_819 and round(code.prompt.mean()) == 2_048


def test_requests_without_a_prompt_are_left_out_with_a_note(tmp_path):
    empty = [{**MOONCAKE, "input_length": 0, "hash_ids": ids} for ids in ([], [4])]
    path = tmp_path / "t"
    path.write_text("".join(json.dumps(row) + "\n" for row in [empty[0], MOONCAKE, empty[1]]))
    trace = traces.read(path)
    assert trace.prompt.tolist() == [600]
    assert "2 requests without prompt tokens are left out" in trace.notes
    path.write_text(HEADER + "2023-11-16 18:17:03,0,4\r\n2023-11-16 18:17:04,9,4\r\n")
    trace = traces.read(path)
    assert (trace.prompt.tolist(), trace.arrival_ns.tolist()) == ([9], [0])
    assert trace.notes == ["1 requests without prompt tokens are left out"]
    path.write_text(json.dumps(empty[0]))
    with pytest.raises(BadInput, match="no requests in it"):
        traces.read(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_every_encoding_and_line_end(tmp_path, encoding, newline, packed):
    azure = ['"TIMESTAMP","ContextTokens","GeneratedTokens"', '"2023-11-16 18:17:03","9","4"']
    note = json.dumps({**MOONCAKE, "note": "na\u00efve"}, ensure_ascii=False)
    for rows in ([note, note], azure + azure[1:], [row.replace('"', "") for row in azure]):
        content = newline.join(["", *rows, ""]).encode(encoding)
        path = tmp_path / "t"
        path.write_bytes(gzip.compress(content) if packed else content)
        trace = traces.read(path)
        assert len(trace) == (2 if len(rows) == 3 or rows[0] == note else 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    rows = "".join(json.dumps({**MOONCAKE, "timestamp": i}) + "\n" for i in range(2000)).encode()
    for content in (rows, gzip.compress(rows)):
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        assert len(traces.read(path)) == 2000
        writer.join()


def test_a_first_line_too_deep_to_be_read_is_one_line(tmp_path):
    path = tmp_path / "t"
    path.write_text("[" * 100_000)
    with pytest.raises(BadInput, match="unknown format"):
        traces.read(path)
