"""`llmds-nb generate`: what it prints and writes, what it refuses, what an interrupt leaves."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from llmds_nb.integrations.transformers import Engine, versions
from llmds_nb.integrations.transformers.random_models import byte_tokenizer, random_model
from llmds_nb.tools.generate import prompts, serving
from llmds_nb.tools.main import main

RANDOM = ["generate", "--random", "llama"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its tokenizer on disk."""
    path = tmp_path_factory.mktemp("model")
    random_model("qwen3", vocab_size=256, num_hidden_layers=2).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


def generate(capsys, tmp_path, *arguments):
    """What a run writes as JSON, and prints."""
    out = tmp_path / "out.json"
    assert main(["generate", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text()), capsys.readouterr().out


def test_a_workload_with_a_shared_prefix(capsys, tmp_path):
    sizes = ["--n-requests", "9", "--shared-prefix-tokens", "64", "--max-new-tokens", "5"]
    result, out = generate(capsys, tmp_path, "--random", "llama", *sizes, "--max-running", "3")
    figures, answers = result["figures"], result["answers"]
    assert figures["n_requests"] == len(answers) == 9
    assert figures["generated_tokens"] == 45 == sum(len(one["token_ids"]) for one in answers)
    # Six of them begin when the prefix of the first three is there.
    assert figures["cached_tokens"] >= 6 * 64
    assert figures["ttft_ms"]["n"] == figures["latency_ms"]["n"] == 9
    assert 0 < figures["pages_peak"] <= figures["pages"]
    assert set(result["held_at_the_end"].values()) == {0}
    assert "random llama, 9 requests" in out
    assert all(name in out for name in ("tokens/s", "TTFT", "prefix hits", "pages", "preemptions"))


def test_a_folder_answers_as_its_model_does(capsys, tmp_path, folder):
    asked = ["one prompt", "and another", "café"]
    new = ("--max-new-tokens", "6")
    result, out = generate(capsys, tmp_path, "--model", folder, *asked, *new)
    model, tokenizer = random_model("qwen3", vocab_size=256, num_hidden_layers=2), byte_tokenizer()
    for prompt, answer in zip(asked, result["answers"], strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        own = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert answer["token_ids"] == own[0, ids.shape[1] :].tolist()
        assert answer["prompt"] == prompt and answer["finish_reason"] == "length"
        assert f"> {prompt}\n" in out


def test_preemptions_change_no_answer(capsys, tmp_path):
    given = ["--random", "gpt2", "--n-requests", "4", "--max-new-tokens", "24"]
    few, _ = generate(capsys, tmp_path, *given, "--pages", "8", "--shared-prefix-tokens", "0")
    many, _ = generate(capsys, tmp_path, *given, "--shared-prefix-tokens", "0")
    assert few["figures"]["preempted"] > 0 == many["figures"]["preempted"]
    for one, other in zip(few["answers"], many["answers"], strict=True):
        assert one["token_ids"] == other["token_ids"]


def test_prompts_of_a_file_are_repeated_and_streamed(capsys, tmp_path, folder):
    file = tmp_path / "asked.jsonl"
    file.write_text('{"prompt": "a first"}\n\n{"prompt": "a second"}\n')
    given = ["--model", folder, "--prompts", str(file), "--n-requests", "3"]
    result, out = generate(capsys, tmp_path, *given, "--max-new-tokens", "4", "--stream")
    assert [one["prompt"] for one in result["answers"]] == ["a first", "a second", "a first"]
    assert result["answers"][0]["token_ids"] == result["answers"][2]["token_ids"]
    assert out.count("> a first\n") == 2 and out.count("> a second\n") == 1


def test_one_answer_is_streamed_whole(capsys, tmp_path):
    given = ["--random", "llama", "a prompt", "--max-new-tokens", "9", "--stream"]
    result, out = generate(capsys, tmp_path, *given)
    text = result["answers"][0]["text"]
    control = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")
    assert out.startswith(text.translate(control) + "\nGeneration: ")


def test_sampling_repeats_with_the_seed(capsys, tmp_path):
    given = ["--random", "llama", "once", "--temperature", "1", "--max-new-tokens", "8"]
    runs = [generate(capsys, tmp_path, *given, "--top-k", "50")[0] for _ in range(2)]
    assert runs[0]["answers"] == runs[1]["answers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "--model DIR or --random KIND"),
        (["generate", "--model", "/x", "--random", "llama"], "and not both"),
        (["generate", "--random", "bert"], "'bert' (choose from"),
        (["generate", "--model", "/no/such", "x"], "/no/such: no such folder"),
        (["generate", "--model", os.path.dirname(__file__), "x"], "there is no config.json"),
        ([*RANDOM, ""], "a prompt is empty"),
        ([*RANDOM, "--prompts", "/no/such"], "/no/such: No such file"),
        ([*RANDOM, "x", "--shared-prefix-tokens", "3"], "without prompts"),
        ([*RANDOM, "x", "--max-new-tokens", "0"], "--max-new-tokens: must be at least 1"),
        ([*RANDOM, "x", "--max-new-tokens", "9000"], "9001; the model has positions for 8192"),
        ([*RANDOM, "x", "--temperature", "-1"], "--temperature: must be in"),
        ([*RANDOM, "x", "--top-p", "2"], "--top-p: must be in [0, 1]"),
        ([*RANDOM, "x", "--threads", "-2"], "--threads: must be in"),
        ([*RANDOM, "x", "--stop", ""], "stop"),
        ([*RANDOM, "x", "--pages", "1"], "the engine has 1"),
        ([*RANDOM, "x", "--chat"], "prompt 1: chat template"),
        ([*RANDOM, "x", "--device", "none"], "--device none: "),
        ([*RANDOM, "x", "--kv-dtype", "int8"], "'int8' (choose from"),
        ([*RANDOM, "x", "--json", "/no/such/folder/x"], "there is no folder"),
    ],
)
def test_bad_arguments_get_one_line(capsys, arguments, message):
    assert main([*arguments, *(["--no-progress"] if "--random" in arguments else [])]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("llmds-nb: ") and message in line
    assert captured.out == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "p.txt: no prompt in it"),
        ("p.txt", b"a\n\xff\n", "p.txt:2: not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{', "p.jsonl:2: not JSON"),
        ("p.jsonl", b'{"prompt": 3}', 'p.jsonl:1: needs a field "prompt"'),
        ("p.jsonl", b'{"messages": ["a"]}', 'p.jsonl:1: needs a field "prompt"'),
    ],
)
def test_a_bad_file_of_prompts_is_named(capsys, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    assert main([*RANDOM, "--prompts", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_what_is_needed(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["generate", "--model", str(tmp_path), "x", "--no-progress"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    random_model("gpt2", vocab_size=256, num_hidden_layers=1).save_pretrained(tmp_path)
    assert main(["generate", "--model", str(tmp_path), "x", "--no-progress"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no tokenizer for the prompts" in line
    given = ["--n-requests", "2", "--max-new-tokens", "2", "--no-progress"]
    assert main(["generate", "--model", str(tmp_path), *given]) == 0


def test_a_missing_or_wrong_extra_is_bad_input(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llmds_nb.integrations.transformers", None)
    assert main([*RANDOM, "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("llmds-nb: ")
    with pytest.raises(ImportError, match=r"pip install 'llmds_nb\[hf\]'"):
        versions.check_version("transformers", "6.0")


def test_an_interrupt_leaves_no_request():
    wanted = prompts.workload(6, 32, 256, 0)
    with Engine(random_model("llama", vocab_size=256), n_pages=64) as engine:
        seen = []

        def interrupt(number, output):
            seen.append(number)
            if len(seen) == 9:
                raise KeyboardInterrupt

        live = serving.Live(None, 6)
        with pytest.raises(KeyboardInterrupt):
            serving.serve(engine, [wanted], None, live, heard=interrupt)
        assert set(serving.left_over(engine).values()) == {0}
        requests, figures = serving.serve(engine, [wanted[:2], wanted[2:]], None, live, at_once=1)
        assert [len(request.prompt_ids) for request in requests] == list(map(len, wanted))
        assert figures["generated_tokens"] == 6 * 16
        assert set(serving.left_over(engine).values()) == {0}


def test_control_c_ends_the_command(tmp_path):
    given = [*RANDOM, "--n-requests", "64", "--max-new-tokens", "2000", "--no-progress"]
    code = (
        "import signal, threading, sys\n"
        "from llmds_nb.tools.generate import serving\n"
        "from llmds_nb.tools.main import main\n"
        "serve = serving.serve\n"
        "def soon(*a, **k):\n"
        "    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()\n"
        "    return serve(*a, **k)\n"
        "serving.serve = soon\n"
        f"sys.exit(main({given}))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert made.returncode == 130
    assert made.stderr.splitlines() == ["llmds-nb: interrupted"]


def test_any_terminal_can_show_an_answer(folder):
    command = [sys.executable, "-m", "llmds_nb", "generate", "--model", folder, "caf\u00e9"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    made = subprocess.run(
        [*command, "--max-new-tokens", "4"], capture_output=True, env=environment, timeout=120
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith(b"> caf\\xe9\n")


def test_the_workload_repeats_with_its_seed():
    made = prompts.workload(5, 7, 300, 1)
    assert made == prompts.workload(5, 7, 300, 1) != prompts.workload(5, 7, 300, 2)
    assert len({tuple(prompt[:7]) for prompt in made}) == 1
    assert max(map(max, made)) < 300
    assert len(np.unique([len(prompt) for prompt in made])) > 1
