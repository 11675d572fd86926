"""The text of tokens as they come: as decoding all at once, and without the stop string."""

import random
import time

import pytest

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, strategies as st  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from llmds_nb.integrations.transformers.stop_strings import MAX_WINDOW, TextStream  # noqa: E402
from tests.interrupts import interrupt_every_line  # noqa: E402

LINES = [
    "The quick brown fox jumps over the lazy dog. The lazy dog sleeps; the fox is quick.",
    "A stop string ends a text: </s> or \n\nUser: or ### or END OF TEXT.",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4e16\u754c\u5f88\u5927\u3002",  # Chinese
    "caf\u00e9 cafe\u0301 na\u00efve n\u0303 o\u0308\u0323",  # composed, and combining marks
    "\U0001f600\U0001f600\U0001f600\U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0645\u0631\u062d\u0628\u0627 \ufffd \ud55c\uad6d\uc5b4",
]
LETTERS = sorted(set("".join(LINES)))


def byte_level(vocab_size):
    """A byte-level BPE as GPT-2 has it, trained on the lines."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def byte_fallback():
    """A BPE as Llama has it: spaces are marks, letters that it does not know are byte tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += sorted(set("abcdefghijklmnopqrstuvwxyzATESNDOFXU.:;#/<>\n"))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return tokenizer


TOKENIZERS = {
    "bytes": byte_level(258),
    "merges": byte_level(420),
    "transformers": PreTrainedTokenizerFast(tokenizer_object=byte_level(340)),
    "fallback": byte_fallback(),
}


def ids_of(tokenizer, text):
    found = tokenizer.encode(text, add_special_tokens=False)
    return found if isinstance(found, list) else found.ids


def whole(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


def run(tokenizer, ids, stop=()):
    """The parts of the text, with what finish gives; tokens after a stop string are left out."""
    stream, parts = TextStream(tokenizer, stop), []
    for token in ids:
        before = stream.text
        parts.append(stream.add(token))
        assert stream.text == before + parts[-1] and stream.n_tokens == len(parts)
        assert len(stream._state.window) <= MAX_WINDOW + 1
        if stream.stopped is not None:
            break
    before = stream.text
    parts.append(stream.finish())
    assert stream.text == before + parts[-1] == "".join(parts)
    return stream, parts


texts = st.lists(st.sampled_from([*LINES, *LETTERS, " ", "\n"]), max_size=12).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts)
def test_the_text_is_that_of_decoding_all_at_once(name, text):
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, text)
    stream, parts = run(tokenizer, ids)
    assert stream.text == whole(tokenizer, ids)
    if "\ufffd" not in text:  # no half of a character is ever shown
        assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", ["bytes", "merges", "transformers"])
@given(seed=st.integers(0, 10**6), n=st.integers(0, 200))
def test_tokens_that_are_no_text_are_decoded_as_all_at_once(name, seed, n):
    """What a random model generates: bytes that are no UTF-8, special tokens between."""
    tokenizer = TOKENIZERS[name]
    rng = random.Random(seed)
    some = [rng.randrange(len(tokenizer.get_vocab())) for _ in range(rng.choice((3, 40, 340)))]
    ids = [rng.choice(some) for _ in range(n)]
    assert run(tokenizer, ids)[0].text == whole(tokenizer, ids)


def test_a_character_is_held_back_until_its_last_byte():
    tokenizer = TOKENIZERS["bytes"]
    ids = ids_of(tokenizer, "a\U0001f600e\u0301")
    assert len(ids) == 8
    assert run(tokenizer, ids)[1] == ["a", "", "", "", "\U0001f600", "e", "", "\u0301", ""]


def test_tokens_that_all_end_within_a_character():
    """A thousand emoji of which no token ends one: the window is bounded, the text is right."""
    emoji = "\U0001f600".encode()
    bytes_of = {0: emoji[:2], 1: emoji[2:] + emoji[:2], 2: emoji[2:]}

    class Straddling:
        def decode(self, ids):
            return b"".join(bytes_of[i] for i in ids).decode(errors="replace")

    stream, parts = run(Straddling(), [0] + [1] * 1000 + [2])
    assert stream.text == "\U0001f600" * 1001 and max(map(len, parts)) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_many_special_tokens_have_no_text_and_cost_little(name):
    tokenizer = TOKENIZERS[name]
    vocabulary = tokenizer.get_vocab()
    special = [vocabulary["<s>"], vocabulary["</s>"]] * 200
    ids = ids_of(tokenizer, "the dog") + special + ids_of(tokenizer, " the fox") + special
    if name == "transformers":
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    assert run(tokenizer, ids)[0].text == whole(tokenizer, ids)


# ---- stop strings -------------------------------------------------------------------------------


def expected(text, stop):
    """The text before the stop string that is complete first; of several the longest."""
    for end in range(1, len(text) + 1):
        ended = [s for s in stop if text[:end].endswith(s)]
        if ended:
            longest = max(ended, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=texts,
    stop=st.lists(
        st.sampled_from(["fox", "lazy dog", "the", "\u4e16\u754c", "\U0001f600", "\u0301", " "])
        | st.lists(st.sampled_from(LETTERS), min_size=1, max_size=3).map("".join),
        max_size=3,
    ),
)  # fmt: skip
def test_the_text_ends_before_the_first_stop_string(name, text, stop):
    tokenizer = TOKENIZERS[name]
    ids = ids_of(tokenizer, text)
    text = whole(tokenizer, ids)
    stream, _ = run(tokenizer, ids, stop)
    assert (stream.text, stream.stopped) == expected(text, stop)


@given(text=st.text("ab", max_size=40), stop=st.lists(st.text("ab", min_size=1, max_size=7)))
def test_stop_strings_that_overlap_themselves(text, stop):
    class Letters:
        def decode(self, ids):
            return "".join(map(chr, ids))

    stream, _ = run(Letters(), list(map(ord, text)), stop)
    assert (stream.text, stream.stopped) == expected(text, stop)


def test_what_may_begin_a_stop_string_is_held_back_and_then_released():
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, ["\n\nUser:", "###"])
    parts = [stream.add(token) for token in ids_of(tokenizer, "a\n\nUse ##b\n")]
    assert parts == ["a", "", "", "", "", "", "\n\nUse ", "", "", "##b", ""]
    assert stream.finish() == "\n" and stream.finish() == "" and stream.stopped is None


def test_after_its_end_a_text_takes_no_token():
    tokenizer = TOKENIZERS["bytes"]
    stream = TextStream(tokenizer, "dog")
    for token in ids_of(tokenizer, "lazy dog"):
        stream.add(token)
    assert stream.stopped == "dog" and stream.text == "lazy "
    with pytest.raises(ValueError, match="the text has ended, by 'dog'"):
        stream.add(5)
    assert stream.finish() == "" and stream.text == "lazy "
    with pytest.raises(ValueError, match="the text has ended"):
        stream.add(5)
    other = TextStream(tokenizer)
    other.finish()
    with pytest.raises(ValueError, match="the text has ended, by finish"):
        other.add(5)


def test_bad_input():
    tokenizer = TOKENIZERS["bytes"]
    for stop in ("", ["a", ""]):
        with pytest.raises(ValueError, match="stop must not have a string of zero length"):
            TextStream(tokenizer, stop)
    with pytest.raises(TypeError, match="stop must be str, not bytes"):
        TextStream(tokenizer, [b"a"])
    with pytest.raises(TypeError, match="tokenizer must have a method decode, which str has not"):
        TextStream("gpt2")
    assert TextStream(tokenizer, "ab").add(ids_of(tokenizer, "x")[0]) == "x"


def test_a_token_costs_the_same_at_the_end_of_a_long_text():
    tokenizer = TOKENIZERS["merges"]
    ids = ids_of(tokenizer, " ".join(LINES))

    def cost(stream):
        begun = time.process_time()
        for token in ids * 5:
            stream.add(token)
        return time.process_time() - begun

    stream = TextStream(tokenizer, ["never here", "nor this"])
    costs = [cost(stream) for _ in range(12)]
    assert min(costs[-3:]) < 3 * min(costs[:3])


def test_an_interrupted_call_has_added_nothing_or_all():
    tokenizer = TOKENIZERS["bytes"]
    ids = ids_of(tokenizer, "x\u4e16END")

    class Checked(TextStream):
        def check(self):
            assert "x\u4e16END".startswith(self.text.rstrip("!"))

    def made():
        stream = Checked(tokenizer, "END OF")
        for token in ids[:-2]:
            stream.add(token)
        return stream

    def observe(stream):
        return stream.text, stream._state

    n = interrupt_every_line(made, lambda stream: stream.add(ids_of(tokenizer, "!")[0]), observe)
    assert n > 20
