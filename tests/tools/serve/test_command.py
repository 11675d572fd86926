"""`llmds-nb serve`: README's example, the end by signals, and what it refuses to begin with."""

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmds_nb import LsaEncoder, RetrievalPipeline
from llmds_nb.tools.main import main
from llmds_nb.tools.serve import addresses, run

pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
pytest.importorskip("uvicorn", reason="needs llmds_nb[serve]")
httpx = pytest.importorskip("httpx", reason="needs httpx")

ROOT = Path(__file__).parents[3]
TEXTS = ["To reset it, hold the button.", "Pages of a cache are shared.", "Reset the router twice."]


@pytest.fixture
def file(tmp_path):
    """A saved index, such as `llmds-nb index` writes."""
    pipeline = RetrievalPipeline(encoder=LsaEncoder(dim=2))
    about = [
        {"source": "docs/router.md"},
        {"source": "docs/cache.md"},
        {"source": "docs/router.md"},
    ]
    pipeline.add(["r#0", "c#0", "r#1"], TEXTS, metadata=about)
    path = tmp_path / "kb.llmds"
    pipeline.save(path)
    return path


class Command:
    """A server in a process of its own."""

    def __init__(self, *arguments, **environment):
        command = [sys.executable, "-m", "llmds_nb", "serve", *map(str, arguments), "--port", "0"]
        environment = {**os.environ, **environment}
        environment.setdefault("LLMDS_API_KEY", "")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.line)
        assert found, self.process.communicate()
        self.url = found.group()

    def end(self, *numbers):
        """Send signals; (exit code, what it wrote to stderr)."""
        for number in numbers:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def serve():
    """serve(*arguments) is a Command, killed after the test if it still runs."""
    started = []

    def start(*arguments, **environment):
        started.append(Command(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_readme_serves_and_ctrl_c_saves(serve, file):
    command = serve(file, "--access-log")
    assert command.line.startswith(f"serving {file}, 3 documents at http://127.0.0.1:")
    block = re.search(r"<!-- curl -->\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    example = block.group(1).replace("http://127.0.0.1:8000", command.url)
    if shutil.which("curl"):
        made = subprocess.run(["bash", "-c", example], capture_output=True, text=True, check=True)
        hits = json.loads(made.stdout)["hits"]
        assert [hit["id"] for hit in hits][:1] == ["r#0"] and len(hits) == 2
    given = {"documents": [{"id": "new", "text": "a new one"}]}
    assert httpx.post(f"{command.url}/documents", json=given).json()["documents"] == 4
    code, errors = command.end(signal.SIGINT)
    assert code == 0
    line = json.loads(errors.splitlines()[-1])
    assert (line["method"], line["path"], line["status"]) == ("POST", "/documents", 200)
    assert RetrievalPipeline.load(file).get("new") == ["a new one"]


def test_a_new_file_keys_of_the_environment_and_no_other_extra(serve, tmp_path):
    path, absent = tmp_path / "new.llmds", tmp_path / "absent"
    absent.mkdir()
    for name in ("torch", "transformers", "wordllama", "tokenizers", "httpx", "httptools"):
        (absent / f"{name}.py").write_text(f"raise ImportError({name!r})")
    paths = os.pathsep.join([str(absent), str(ROOT)])
    command = serve(path, "--new", LLMDS_API_KEY="one, two", PYTHONPATH=paths)
    body = {"documents": [{"id": "a", "text": "red fox"}]}
    assert httpx.post(f"{command.url}/documents", json=body).status_code == 401
    headers = {"Authorization": "Bearer two"}
    answer = httpx.post(f"{command.url}/documents", json=body, headers=headers)
    assert answer.json() == {"ids": ["a"], "documents": 1, "saved": False}
    assert command.end(signal.SIGTERM) == (0, "")
    assert RetrievalPipeline.load(path).get("a") == ["red fox"]


def test_a_second_signal_ends_at_once(serve, file):
    command = serve(file, "--drain-timeout", "1000")
    with socket.create_connection(("127.0.0.1", int(command.url.rpartition(":")[2]))) as slow:
        slow.sendall(
            b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 100")  # it is under way
        command.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{command.url}/health/ready").status_code != 503:
            pass
        code, errors = command.end(signal.SIGINT)
    assert code == 130 and "Traceback" not in errors


@pytest.fixture
def in_thread(capsys, monkeypatch):
    """`with in_thread(file) as url`: the command in a thread; afterwards `.code` and `.errors`."""
    from llmds_nb.integrations import serve as package

    stops = queue.Queue()
    run_server = package.run_server

    def stoppable(app, listener, *, on_ready):
        def heard(stop):
            stops.put((stop, addresses.url(listener)))
            on_ready(stop)

        run_server(app, listener, on_ready=heard)

    monkeypatch.setattr(package, "run_server", stoppable)
    monkeypatch.delenv("LLMDS_API_KEY", raising=False)

    class Running:
        @contextlib.contextmanager
        def __call__(self, *arguments):
            with ThreadPoolExecutor(1) as threads:
                given = ["serve", *map(str, arguments), "--port", "0"]
                code = threads.submit(main, given)
                stop, url = stops.get(timeout=60)
                yield url
                stop()
                self.code = code.result(60)
            self.errors = capsys.readouterr().err

    return Running()


def test_a_file_that_another_process_changed_is_kept(in_thread, file):
    with in_thread(file) as url:
        assert httpx.delete(f"{url}/documents/c%230").status_code == 200
        other = RetrievalPipeline.load(file)
        other.remove("r#0")
        other.save(file)
    aside = f"{file}.unsaved"
    assert in_thread.code == 2 and in_thread.errors.count("\n") == 1
    assert "was changed by another process" in in_thread.errors and aside in in_thread.errors
    assert sorted(RetrievalPipeline.load(file).ids()) == ["c#0", "r#1"]
    assert sorted(RetrievalPipeline.load(aside).ids()) == ["r#0", "r#1"]


def test_documents_set_aside_before_are_kept(in_thread, file):
    aside = Path(f"{file}.unsaved")
    aside.write_bytes(b"of a server before")
    with in_thread(file) as url:
        assert httpx.delete(f"{url}/documents/c%230").status_code == 200
        shutil.copy(file, f"{file}.other")
        os.replace(f"{file}.other", file)
    assert in_thread.code == 2 and f"{aside}-2" in in_thread.errors
    assert aside.read_bytes() == b"of a server before"
    assert sorted(RetrievalPipeline.load(f"{aside}-2").ids()) == ["r#0", "r#1"]


@pytest.mark.parametrize("new", [False, True])
def test_a_file_that_changes_while_the_model_is_opened(capsys, file, monkeypatch, new):
    kept, path = file.read_bytes(), file.parent / "new" if new else file

    def open_engine(given):
        path.with_suffix(".other").write_bytes(kept)
        path.with_suffix(".other").replace(path)
        return None, "model"

    monkeypatch.setattr(run, "_engine", open_engine)
    options = ("--new",) if new else ()
    assert "was changed by another process" in refused(capsys, path, *options, "--port", 0)
    assert path.read_bytes() == kept


def test_a_folder_that_has_gone(in_thread, file):
    folder = file.parent / "inner"
    folder.mkdir()
    moved = folder / file.name
    file.rename(moved)
    with in_thread(moved) as url:
        assert httpx.delete(f"{url}/documents/c%230").status_code == 200
        shutil.rmtree(folder)
    assert in_thread.code == 2 and in_thread.errors.count("\n") == 1
    assert f"{moved}: No such file or directory" in in_thread.errors


def refused(capsys, *arguments):
    """The one line of a command that does not begin."""
    assert main(["serve", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_what_cannot_be_served_gets_one_line(capsys, file, tmp_path, monkeypatch):
    monkeypatch.delenv("LLMDS_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: Address already in use" in refused(capsys, file, "--port", port)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(file.read_bytes()[:-100])
    assert "damaged" in refused(capsys, damaged, "--port", 0)
    (tmp_path / "text").write_text("no index")
    assert "text" in refused(capsys, tmp_path / "text", "--port", 0)
    other = tmp_path / "lsa"
    LsaEncoder(dim=2).fit(TEXTS).save(other)
    assert "lsa" in refused(capsys, other, "--port", 0)
    assert "is there already" in refused(capsys, file, "--new", "--port", 0)
    new = tmp_path / "new"
    assert "klingon" in refused(capsys, new, "--new", "--language", "klingon", "--port", 0)
    assert "LLMDS_API_KEY" in refused(capsys, file, "--host", "0.0.0.0", "--port", 0)
    monkeypatch.setenv("LLMDS_API_KEY", " , ")  # no key
    assert "LLMDS_API_KEY" in refused(capsys, file, "--host", "0.0.0.0", "--port", 0)


def test_without_the_extra_it_says_what_to_install(capsys, file, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("llmds_nb.integrations.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    import llmds_nb.integrations

    monkeypatch.delattr(llmds_nb.integrations, "serve", raising=False)
    assert "pip install 'llmds_nb[serve]'" in refused(capsys, file)


def test_keys_and_names():
    assert run.keys_of("a,b\tc\n") == ("a", "b", "c") and run.keys_of(" ,") == ()
    assert addresses.names("::1") == ("localhost", "127.0.0.1", "[::1]")
    with addresses.bound("localhost", 0) as listener:
        assert addresses.is_loopback(listener)
        assert addresses.url(listener).startswith(("http://127.0.0.1:", "http://[::1]:"))
    with addresses.bound("0.0.0.0", 0) as listener:
        assert not addresses.is_loopback(listener)
