"""The prompt of a RAG request as token ids: system prompt, retrieved documents, question."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llmds_nb._core.typing import Int32s

DOCUMENTS_PER_PROMPT = 4
DOCUMENT_TOKENS = 256  # a longer document is truncated

# Words and single punctuation marks: about 1.3 tokens per word, as with a model's tokenizer.
_PATTERN = r"\w+|[^\w\s]"

SYSTEM_PROMPT = """\
You are the documentation assistant of an engineering team. You answer questions about
software libraries for people who are in the middle of their work, and you rest every
statement on the documents given below the line. Follow these rules without exception.

1. Read all documents before you answer. They are ordered by relevance, the most relevant
   first, but a later one may correct or complete an earlier one. If two of them disagree,
   say so and name both.
2. Answer only from the documents. If they do not hold the answer, say "The documentation
   given to me does not answer this", name what is missing, and stop. Never invent a
   function, a parameter, a default value, a version number or an error message.
3. Begin with the answer itself in one sentence. Give details after it: parameters with
   their types and defaults, what is returned, which errors are raised and when, and what it
   costs.
4. Show code only if it is short and if the documents show that it works. Use the names
   exactly as they are written, in a code block, with the imports it needs. Do not shorten
   names.
5. Cite the source of every statement by its name in square brackets, for example
   [numpy.linalg.solve]. A statement without a source must not be in the answer.
6. If the question can be understood in two ways, answer the more likely one and tell the
   reader in one sentence how you understood it.
7. Mention deprecations, side effects, security warnings and differences between versions
   whenever the documents mention them, even if nobody asked.
8. Keep to the language of the question. Write plainly, without praise, apologies or
   repetition, and use no more than two hundred words unless the reader asks for more.

The documents follow, each with its name on the first line. After them comes the question.
-----
"""


def longest_prompt(questions: Iterable[str]) -> int:
    """An upper bound on the tokens of a prompt for any of these questions."""
    longest = max(len(re.findall(_PATTERN, question)) for question in questions)
    system = len(re.findall(_PATTERN, SYSTEM_PROMPT))
    return system + DOCUMENTS_PER_PROMPT * DOCUMENT_TOKENS + longest


class PromptBuilder:
    """Turns a question and the ids of retrieved documents into token ids.

    Every document is tokenized once and has the same tokens in every prompt, so prompts that begin
    with the same documents in the same order share that prefix. `text_of` takes a list of document
    ids and returns their texts; `tokens` makes token ids int32[n] of a text, by default those of
    its words.
    """

    def __init__(
        self,
        text_of: Callable[[list[int]], list[Any]],
        tokens: Callable[[str], Int32s] | None = None,
    ) -> None:
        from llmds_nb import Tokenizer

        self._tokenizer = Tokenizer(lowercase=False, stopwords=None, pattern=_PATTERN)
        self._text_of, self._tokens_of = text_of, tokens
        self._documents: dict[int, Int32s] = {}
        self._system = self.tokens(SYSTEM_PROMPT)
        self.system_tokens = len(self._system)

    def tokens(self, text: str) -> Int32s:
        """Token ids int32[n] of a text; an unknown word gets a new id."""
        if self._tokens_of is not None:
            return self._tokens_of(text)
        return self._tokenizer.fit([text]).encode([text]).ids

    def build(self, question_tokens: Int32s, document_ids: Sequence[int] | np.ndarray) -> Int32s:
        """The prompt int32[n]; ids of -1 (no document) are left out."""
        parts = [self._system]
        parts += [self._document(int(i)) for i in document_ids[:DOCUMENTS_PER_PROMPT] if i >= 0]
        return np.concatenate([*parts, question_tokens])

    def _document(self, number):
        tokens = self._documents.get(number)
        if tokens is None:
            text = self._text_of([number])[0]
            # About twice the characters needed, so that a long text is not tokenized in full.
            tokens = self.tokens(text[: DOCUMENT_TOKENS * 8])[:DOCUMENT_TOKENS]
            self._documents[number] = tokens
        return tokens
