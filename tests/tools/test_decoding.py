"""Text files of unknown encoding are read by one rule."""

import pytest

from llmds_nb.tools.decoding import decoded, raw_lines
from llmds_nb.tools.errors import BadInput


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        (b"", "", "UTF-8"),
        ("caf\u00e9".encode(), "caf\u00e9", "UTF-8"),
        ("\ufeffcaf\u00e9".encode(), "caf\u00e9", "UTF-8"),
        ("caf\u00e9".encode("latin-1"), "caf\u00e9", "Windows-1252"),
        ("10 \u20ac \u201cnow\u201d".encode("cp1252"), "10 \u20ac \u201cnow\u201d", "Windows-1252"),
        (b"undefined \x81", "undefined \ufffd", "Windows-1252"),
        ("caf\u00e9".encode("utf-16"), "caf\u00e9", "UTF-16"),
        ("\ufeffcaf\u00e9".encode("utf-16-be"), "caf\u00e9", "UTF-16"),
        (
            "\u4e2d\u6587\u4e2d".encode() + b"\xff!",
            "\u4e2d\u6587\u4e2d\ufffd!",
            "UTF-8, 1 wrong bytes replaced",
        ),
    ],
)
def test_one_rule(content, text, encoding):
    assert decoded(content) == (text, encoding)


@pytest.mark.parametrize(
    "content", [b"\0", b"a\0b", bytes(range(1, 256)), b"\x89PNG\r\n\x1a\n\0\0\0", b"\xff\xfe\0\0"]
)
def test_binary_is_refused(content):
    with pytest.raises(BadInput, match="binary"):
        decoded(content)


def test_lines(tmp_path):
    lines = ["\u4e2d one\r\n", "\n", "two"]
    for encoding in ("utf-8", "utf-16"):
        path = tmp_path / encoding
        path.write_bytes("".join(lines).encode(encoding))
        assert [decoded(raw)[0] for raw in raw_lines(path)] == lines
    (tmp_path / "empty").touch()
    assert list(raw_lines(tmp_path / "empty")) == []
