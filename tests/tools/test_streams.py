"""What commands print: on any terminal, into pipes that close, on a full disk, at Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from llmds_nb.tools.main import main

NAME = "na\u00efve \u4e2d \u2192"  # the second and third character are not in cp1252


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A corpus, its index and a trace, all with names and texts beyond ASCII."""
    folder = tmp_path_factory.mktemp("texts")
    texts = folder / NAME
    texts.mkdir()
    for i in range(4):
        line = f"The \u4e2d\u6587 \u2192 number {i} has a first sentence of some words. "
        (texts / f"{NAME}{i}.txt").write_text(line * 3 + "\U0001f600", encoding="utf-8")
    trace = folder / f"{NAME}.jsonl"
    request = {"arrival_ms": 1, "prompt": 1, "prompt_tokens": 9, "output_tokens": 2}
    trace.write_text(json.dumps(request) + "\n")
    index = folder / f"{NAME}.llmds"
    assert main(["index", str(texts), "--out", str(index)]) == 0
    return {"texts": texts, "trace": trace, "index": index, "folder": folder}


def commands(files):
    out = files["folder"]
    return {
        "index": ["index", files["texts"], "--out", out / f"{NAME} again"],
        "search": ["search", files["index"], "\u4e2d number"],
        "search --json": ["search", files["index"], "\u4e2d number", "--json"],
        "info": ["info", files["index"]],
        "replay": ["replay", files["trace"], "--pages", "8", "--page-size", "16"],
        "sweep": ["replay", files["trace"], "--sweep", "pages=8", "--page-size", "16"],
        "workload": ["workload", "--out", out / f"{NAME} w", "--requests", "3"],
    }


class Terminal:
    """Standard output and error of one encoding, as Python makes them."""

    def __init__(self, monkeypatch, encoding, errors):
        self._raw = io.BytesIO(), io.BytesIO()
        for name, raw in zip(("stdout", "stderr"), self._raw, strict=True):
            stream = io.TextIOWrapper(raw, encoding, errors, write_through=True)
            monkeypatch.setattr(sys, name, stream)

    def shown(self):
        return [raw.getvalue() for raw in self._raw]


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
def test_every_command_prints_on_every_terminal(monkeypatch, files, encoding, errors):
    for name, arguments in commands(files).items():
        terminal = Terminal(monkeypatch, encoding, errors)
        assert main([str(a) for a in arguments]) == 0, name
        out, err = terminal.shown()
        assert out and b"Traceback" not in err
        if name == "search --json":
            assert NAME in json.loads(out)[0]["metadata"]["source"]
        elif name not in ("info",):
            assert rb"\u4e2d" in out, name


def run(*arguments, **options):
    command = [sys.executable, "-m", "llmds_nb", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=300, **options)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_process_of_another_encoding(files, environment):
    for arguments in (commands(files)["search"], ["search", files["folder"] / "\u4e2d", "x"]):
        done = run(*arguments, env=os.environ | environment)
        assert b"Traceback" not in done.stderr
        assert rb"\u4e2d" in done.stdout + done.stderr or b"\\udc" in done.stdout + done.stderr
        assert done.returncode == (0 if arguments[1] == files["index"] else 2)


@pytest.mark.skipif(os.name != "posix", reason="needs such names")
def test_control_characters_and_line_ends_in_texts_and_names(capsys, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a\nb\x1b[2J.txt").write_text("a \x1b[31mred\x07 fox\r\x9b1m", encoding="utf-8")
    (texts / "c\nd.txt").write_bytes(b"\0")
    assert main(["index", str(texts), "--out", str(tmp_path / "out")]) == 0
    (skipped,) = [x for x in capsys.readouterr().err.split("\n") if x.startswith("skipped: ")]
    assert skipped.endswith("c d.txt: binary, not text")
    assert main(["search", str(tmp_path / "out"), "fox"]) == 0
    (first, second, rest) = capsys.readouterr().out.split("\n")
    assert "/a b\ufffd[2J.txt#0  [0:" in first and rest == ""
    assert second == "     a \ufffd[31mred\ufffd fox \ufffd1m"


@pytest.mark.skipif(os.name != "posix", reason="needs locales")
def test_a_query_is_utf8_in_every_locale(files):
    environment = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run("search", files["index"], "\u4e2d\u6587", env=os.environ | environment)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 8


def through(pipe, *arguments):
    """Exit codes (of the command, of the pipe) and what the command said."""
    command = " ".join([sys.executable, "-m", "llmds_nb", *map(str, arguments)])
    script = f"{command} {pipe}; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=300)
    *said, code = done.stderr.decode().splitlines()
    return int(code), said


@pytest.mark.skipif(os.name != "posix", reason="needs bash")
@pytest.mark.parametrize("pipe", ["| true", "| head -n 1", "2>&1 | true", ">&-", "2>&-"])
def test_a_reader_that_goes_away_is_no_error(tmp_path, pipe):
    out = tmp_path / "w.jsonl"
    for arguments in (["--version"], ["workload", "--out", out, "--requests", "5"]):
        code, said = through(pipe, *arguments)
        assert code == 0
        usual = "write: 5 requests", "llmds-nb 0."  # argparse prints the version on what is left
        assert [line for line in said if not line.startswith(usual)] == []
    assert len(out.read_text().splitlines()) == 5


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path):
    arguments = ["workload", "--out", tmp_path / "w", "--requests", "1"]
    code, (_, said) = through("> /dev/full", *arguments)
    assert (code, said) == (2, "llmds-nb: standard output: No space left on device")


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_everywhere_is_one_line(tmp_path, number):
    """Ctrl-C in a terminal reaches the processes of a sweep as well, `kill` only the command."""
    trace = tmp_path / "t.jsonl"
    assert main(["workload", "--out", str(trace), "--requests", "20000"]) == 0
    command = [sys.executable, "-m", "llmds_nb", "replay", trace, "--jobs", "2", "--sweep"]
    command += ["seed=" + ",".join(map(str, range(200)))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    said = process.stderr.readline()
    assert said.startswith(b"read (")
    time.sleep(8)  # until the processes run
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, rest = process.communicate(timeout=60)
    code, word = (130, "interrupted") if number == signal.SIGINT else (143, "terminated")
    assert rest.decode().splitlines() == [f"llmds-nb: {word}"]
    assert process.returncode == code
    with pytest.raises(ProcessLookupError):  # none of its processes is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_command_leaves_the_old_file_and_no_other(tmp_path, number, code):
    out = tmp_path / "w"
    out.write_text("old")
    command = [sys.executable, "-m", "llmds_nb", "workload", "--out", out, "--requests", "999999"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while all(file.stat().st_size <= 3 for file in tmp_path.iterdir()):  # until it writes
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code and len(said.splitlines()) == 1
    assert os.listdir(tmp_path) == ["w"] and out.read_text() == "old"
