"""What single tokens look like, for logprobs: their text and bytes, in OpenAI's two shapes."""

import re
from collections.abc import Sequence
from typing import Any

from llmds_nb.integrations.transformers import LogProb

LEAST = -9999.0  # what OpenAI reports for a probability of nothing: JSON has no infinity
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte by itself, of tokenizers that fall back to bytes
_SPACE = "\u2581"  # what SentencePiece writes for a space


def _letters_of_bytes():
    """Of each byte the letter that byte-level tokenizers write for it (those of GPT-2)."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printed else next(others)): byte for byte in range(256)}


_LETTERS = _letters_of_bytes()


class TokenTexts:
    r"""The text and the bytes of each token of a tokenizer.

    A token that is no whole character has the text that OpenAI gives it, of its bytes.

    Parameters
    ----------
    tokenizer : optional
        None: tokens are named by their ids, as vLLM does.

    Examples
    --------
    >>> from llmds_nb.integrations.transformers.random_models import byte_tokenizer
    >>> texts = TokenTexts(byte_tokenizer())
    >>> texts.of(65), texts.of(195)
    (('A', [65]), ('bytes:\\xc3', [195]))
    >>> TokenTexts(None).of(7)
    ('token_id:7', None)
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def of(self, token: int) -> tuple[str, list[int] | None]:
        """The text of a token, and its bytes in UTF-8, None if they are not known."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token):
        name = None
        if self._tokenizer is not None:
            for method in ("convert_ids_to_tokens", "id_to_token"):
                if name is None and hasattr(self._tokenizer, method):
                    name = getattr(self._tokenizer, method)(token)
        if not isinstance(name, str):  # the model's vocabulary may be larger than the tokenizer's
            return f"token_id:{token}", None
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        if match := _BYTE.fullmatch(name):
            raw = bytes([int(match[1], 16)])
        elif all(letter in _LETTERS for letter in name):
            raw = bytes(map(_LETTERS.__getitem__, name))
            if raw.decode(errors="replace") != text:  # its letters do not stand for bytes
                raw = text.encode(errors="replace")
        else:
            raw = (name.replace(_SPACE, " ") if _SPACE in name else text).encode(errors="replace")
        try:
            return raw.decode(), list(raw)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), list(raw)


def chat_logprobs(
    texts: TokenTexts, tokens: Sequence[int], logprobs: Sequence[LogProb]
) -> dict[str, Any]:
    """Logprobs of tokens, as a choice of a chat has them."""
    return {
        "content": [
            {
                **_entry(texts, token, own.sampled),
                "top_logprobs": [_entry(texts, other, log) for other, log in own.top.items()],
            }
            for token, own in zip(tokens, logprobs, strict=True)
        ],
        "refusal": None,
    }


def _entry(texts, token, log):
    text, raw = texts.of(token)
    return {"token": text, "logprob": max(log, LEAST), "bytes": raw}


def completion_logprobs(
    texts: TokenTexts, tokens: Sequence[int], logprobs: Sequence[LogProb], start: int
) -> dict[str, Any]:
    """Logprobs of tokens, as a choice of a completion has them.

    Parameters
    ----------
    start : int
        How many characters the texts of the choice's tokens before these have.
    """
    names = [texts.of(token)[0] for token in tokens]
    offsets = []
    for name in names:
        offsets.append(start)
        start += len(name)
    return {
        "tokens": names,
        "token_logprobs": [max(own.sampled, LEAST) for own in logprobs],
        "top_logprobs": [
            {
                **{texts.of(other)[0]: max(log, LEAST) for other, log in own.top.items()},
                name: max(own.sampled, LEAST),
            }
            for name, own in zip(names, logprobs, strict=True)
        ],
        "text_offset": offsets,
    }
