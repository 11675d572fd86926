"""`llmds-nb serve --model`: README's example by OpenAI's client, and the models it refuses."""

import contextlib
import io
import re
from argparse import Namespace

import pytest

torch = pytest.importorskip("torch", reason="needs llmds_nb[hf]")
pytest.importorskip("transformers", reason="needs llmds_nb[hf]")
pytest.importorskip("starlette", reason="needs llmds_nb[serve]")
openai = pytest.importorskip("openai", reason="needs the client of OpenAI's API")

from llmds_nb.integrations.transformers.random_models import (  # noqa: E402
    byte_tokenizer,
    random_model,
)
from llmds_nb.tools.errors import BadInput  # noqa: E402
from llmds_nb.tools.main import main  # noqa: E402
from llmds_nb.tools.serve.engine import open_engine  # noqa: E402

from .test_command import ROOT, file, serve  # noqa: E402, F401


def options(model, **others):
    given = {"pages": 64, "max_running": 4, "dtype": None, "device": "cpu", "model_threads": 1}
    return Namespace(model=str(model), **{**given, **others})


def test_the_example_of_the_readme(serve, file):  # noqa: F811
    readme = (ROOT / "README.md").read_text()
    example = re.search(r"<!-- openai -->\n```python\n(.*?)```", readme, re.S).group(1)
    server = serve(file, "--model", "random:llama", "--rag", 1)
    assert "model random:llama" in server.line
    example = example.replace("http://127.0.0.1:8000", server.url)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(example, names)
    answer = names["answer"]
    assert answer.retrieval["documents"][0]["id"] == "r#0"
    assert len(answer.retrieval["documents"]) == 2 and answer.usage.completion_tokens == 32
    assert len(names["vectors"].data) == 2
    with names["client"] as client:
        chat = client.chat.completions.create(
            model="random:llama", messages=names["messages"], max_tokens=1
        )
    assert len(chat.retrieval["documents"]) == 1  # by --rag
    names["client"].close()


def test_models_of_folders(tmp_path):
    model = random_model("llama", num_hidden_layers=1)
    model.save_pretrained(tmp_path / "mine")
    engine, name = open_engine(options(tmp_path / "mine"))
    with engine:
        assert name == "mine" and engine.tokenizer is None and engine.cache.n_pages == 64
        assert len(engine.cache) == 0 and engine.stats().cached_pages == 0
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path / "mine")
    engine, _ = open_engine(options(tmp_path / "mine"))
    with engine:
        prompt = torch.tensor([[65]])
        made = model.generate(prompt, max_new_tokens=3, do_sample=False, pad_token_id=0)
        expected = made[0, 1:].tolist()
        messages = [{"role": "user", "content": "A"}]
        (found,) = engine.generate([messages], max_new_tokens=3, progress=False)
        assert found.token_ids == expected


@pytest.mark.parametrize(
    ("model", "text"),
    [("random:none", "must be a folder or random:"), ("nowhere", "no such folder")],
)
def test_models_that_are_refused(tmp_path, capsys, model, text):
    with pytest.raises(BadInput, match=text):
        open_engine(options(model))
    assert main(["serve", "--model", model, "--port", "0"]) == 2
    captured = capsys.readouterr()
    assert text in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_documents_in_chats_need_documents(capsys):
    assert main(["serve", "--model", "random:llama", "--rag", "2"]) == 2
    assert "--rag needs" in capsys.readouterr().err
