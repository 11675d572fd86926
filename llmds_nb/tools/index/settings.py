"""The language and the encoder of an index: of a new one, and of a saved one by name."""

from typing import Any, NamedTuple

from llmds_nb import InvertedIndex, LsaEncoder, RetrievalPipeline, Tokenizer

from ..errors import BadInput

LSA_DIM = 256
NONE = "none"
_SAME = {"static": "wordllama-256"}  # encoders of two names


class Settings(NamedTuple):
    """What an index is made with, or must have; None: the default, or whatever it has.

    `language` is one of a Tokenizer, or "none"; `encoder` is a name that RetrievalPipeline takes.
    """

    language: str | None = None
    encoder: str | None = None

    def new_pipeline(self) -> RetrievalPipeline:
        """An empty pipeline. ValueError, TypeError or ImportError for names that there are not."""
        encoder: Any = self.encoder or "lsa"
        if encoder == "lsa":
            encoder = LsaEncoder(LSA_DIM, tokenizer=self._tokenizer())
        sparse = InvertedIndex(tokenizer=self._tokenizer())
        return RetrievalPipeline(encoder=encoder, sparse=sparse)

    def _tokenizer(self) -> Tokenizer:
        language = None if self.language == NONE else self.language or "english"
        return Tokenizer(language=language)

    def check(self, pipeline: RetrievalPipeline, name: str) -> None:
        """BadInput unless a pipeline, the file `name`, has these settings."""
        for what, own, wanted in (
            ("language", language_of(pipeline), self.language),
            ("encoder", encoder_of(pipeline), self.encoder),
        ):
            if wanted is not None and _SAME.get(wanted, wanted) != own:
                raise BadInput(f"{name} has the {what} {own!r}: --add takes no other ({wanted!r})")


def language_of(pipeline: RetrievalPipeline) -> str:
    """The language of a pipeline's words, or "none"."""
    return pipeline.sparse.tokenizer.language or NONE


def encoder_of(pipeline: RetrievalPipeline) -> str:
    """The name of a pipeline's encoder; "none" if its file has none."""
    encoder = pipeline.encoder
    if encoder is None:
        return NONE
    return "lsa" if isinstance(encoder, LsaEncoder) else str(getattr(encoder, "name", encoder))
