"""TextStream: the text of tokens as they come, which only ever grows, and ends at a stop string."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llmds_nb._core import validation
from llmds_nb._core.validation import shown

UNKNOWN = "\ufffd"  # what a decoder gives for bytes that are no character, or not yet one
# A decoder gives at most so many for one character whose last bytes are still to come: three bytes,
# and, where it judges a run of byte tokens as a whole (byte fallback), four of the one before.
MAX_HELD = 8
# Tokens that are decoded again with each new one: at most, and how many stay when it is more.
MAX_WINDOW, KEPT = 64, 32


class _State(NamedTuple):
    """All of a stream but its text; one assignment replaces it."""

    window: tuple[int, ...] = ()  # the last tokens
    n_context: int = 0  # of them, whose text is complete
    released: str = ""  # the text of the window that was looked at
    matched: tuple[int, ...] = ()  # of each stop string, how much the text ends with
    tail: str = ""  # text that may be the beginning of a stop string
    n_parts: int = 0
    n_tokens: int = 0
    stopped: str | None = None
    finished: bool = False


class TextStream:
    """The text of a request's tokens as they come.

    The text only ever grows: what a character lacks bytes of, or what may be the beginning of a
    stop string, is held back until it is known.

    Parameters
    ----------
    tokenizer : object
        A tokenizer of transformers or of the package tokenizers, or anything with
        ``decode(list of int) -> str``. Special tokens are left out of the text, where it can.
    stop : str or sequence of str
        The text ends before the first of these that is complete, of several complete at once
        before the longest, however it is spread over tokens.

    Raises
    ------
    TypeError
        The tokenizer has no `decode`, or a stop string is no str.
    ValueError
        A stop string is empty.

    Notes
    -----
    O(1) amortised for a token and each of its characters and stop strings (Knuth, Morris and
    Pratt, Fast pattern matching in strings, 1977): a window of few tokens is decoded twice.

    Examples
    --------
    >>> from llmds_nb.integrations.transformers.stop_strings import TextStream
    >>> class Letters:
    ...     def decode(self, ids):
    ...         return "".join(chr(i) for i in ids)
    >>> stream = TextStream(Letters(), stop="END")
    >>> [stream.add(ord(letter)) for letter in "an EN, END"]
    ['a', 'n', ' ', '', '', 'EN,', ' ', '', '', '']
    >>> stream.stopped, stream.text
    ('END', 'an EN, ')
    """

    def __init__(self, tokenizer: Any, stop: str | Sequence[str] = ()) -> None:
        self._decode = decoder(tokenizer)
        self._stop = tuple(dict.fromkeys(validation.texts(stop, "stop")))
        if "" in self._stop:
            raise ValueError("stop must not have a string of zero length: it would stop at once")
        self._failure = tuple(map(_failure_of, self._stop))
        self._parts: list[str] = []
        self._state = _State(matched=(0,) * len(self._stop))

    def __repr__(self) -> str:
        return f"<TextStream of {sum(map(len, self._parts))} characters>"

    @property
    def text(self) -> str:
        """All of the text so far."""
        return "".join(self._parts[: self._state.n_parts])

    @property
    def n_tokens(self) -> int:
        """How many tokens it has taken; an `add` that raised has taken none."""
        return self._state.n_tokens

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._state.stopped

    def add(self, token: int) -> str:
        """What the text grows by with one more token. Raises ValueError after its end."""
        self._refuse_ended()
        state = self._state._replace(n_tokens=self._state.n_tokens + 1)
        window = (*state.window, token)
        text = self._decode(list(window))
        held = len(text) - len(text.rstrip(UNKNOWN))
        known = complete_part(text)
        revised = not known.startswith(state.released)
        if not revised:
            new = known[len(state.released) :]
        elif 0 < held <= MAX_HELD:
            return self._keep(state._replace(window=window), "")
        else:  # the decoder takes back what was released: take the new tokens by themselves
            new = self._alone(window)
        if revised or (new and not held):
            window = window[state.n_context :]
            state = state._replace(n_context=len(window), released=self._decode(list(window)))
        else:
            state = state._replace(released=known)
        state = state._replace(window=window)
        if len(window) > MAX_WINDOW:
            state = self._shortened(state, text)
        return self._take(state, new)

    def finish(self) -> str:
        """What the text grows by when no more tokens come: all that was held back."""
        if self._state.finished:
            return ""
        state = self._state
        new = ""
        if state.stopped is None and state.window:
            text = self._decode(list(state.window))
            revised = not text.startswith(state.released)
            new = self._alone(state.window) if revised else text[len(state.released) :]
        return self._take(state._replace(finished=True), new)

    def _refuse_ended(self):
        if self._state.stopped is not None:
            raise ValueError(f"the text has ended, by {shown(self._state.stopped)}")
        if self._state.finished:
            raise ValueError("the text has ended, by finish()")

    def _alone(self, window):
        """The text of the tokens after the context without it, but for what was released."""
        n_context, released = self._state.n_context, self._state.released
        n_released = len(released) - len(self._decode(list(window[:n_context])))
        return self._decode(list(window[n_context:]))[max(0, n_released) :]

    def _shortened(self, state, text):
        """The state with fewer tokens in its window, where no character ends with a token."""
        if state.released == text:  # special tokens, which have no text, after the context
            context = state.window[: state.n_context]
            if context and self._decode(list(context)) == text:
                return state._replace(window=context)
        window = state.window[-KEPT:]
        latest = self._decode(list(window))
        n_held = len(text) - len(state.released)
        return state._replace(
            window=window, n_context=0, released=latest[: max(0, len(latest) - n_held)]
        )

    def _take(self, state, new):
        """Search the new text for stop strings; release what cannot be the beginning of one."""
        if not self._stop:
            return self._keep(state, new)
        text = state.tail + new
        matched = list(state.matched)
        for at, letter in enumerate(new, start=len(state.tail) + 1):
            ended = []
            for i, (stop, failure) in enumerate(zip(self._stop, self._failure, strict=True)):
                n = matched[i]
                while n and stop[n] != letter:
                    n = failure[n - 1]
                matched[i] = n = n + (stop[n] == letter)
                if n == len(stop):
                    ended.append(stop)
            if ended:
                stop = max(ended, key=len)
                return self._keep(state._replace(tail="", stopped=stop), text[: at - len(stop)])
        n_tail = 0 if state.finished else max(matched)
        known, tail = text[: len(text) - n_tail], text[len(text) - n_tail :]
        return self._keep(state._replace(matched=tuple(matched), tail=tail), known)

    def _keep(self, state, new):
        del self._parts[self._state.n_parts :]  # of a call that was interrupted
        if new:
            self._parts.append(new)
            state = state._replace(n_parts=len(self._parts))
        self._state = state
        return new


def complete_part(text: str) -> str:
    """Text without what may be the first bytes of a character whose others are still to come."""
    n_held = len(text) - len(text.rstrip(UNKNOWN))
    return text[: len(text) - min(n_held, MAX_HELD)]


def decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """What turns token ids into text by a tokenizer, without special tokens where it can."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # of a fast tokenizer of transformers: a tenth of the time
        tokenizer = backend
    decode = getattr(tokenizer, "decode", None)
    if not callable(decode):
        kind = type(tokenizer).__name__
        raise TypeError(f"tokenizer must have a method decode, which {kind} has not")
    try:
        names = inspect.signature(decode).parameters
    except ValueError:  # written in C, without a signature
        return decode
    options = {"skip_special_tokens": True} if "skip_special_tokens" in names else {}
    if hasattr(tokenizer, "clean_up_tokenization_spaces"):  # it would take back spaces
        options["clean_up_tokenization_spaces"] = False
    return lambda ids: decode(ids, **options)


def _failure_of(pattern):
    """For each prefix of a pattern the length of its longest proper suffix that begins it."""
    lengths = [0]
    for letter in pattern[1:]:
        n = lengths[-1]
        while n and pattern[n] != letter:
            n = lengths[n - 1]
        lengths.append(n + (pattern[n] == letter))
    return lengths
