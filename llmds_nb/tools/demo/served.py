"""The demo's RAG service with a real model: retrieved passages become prompts of an Engine."""

from typing import Any

import numpy as np

from llmds_nb._core.typing import Int32s

from ..errors import BadInput
from ..generate import models, serving
from ..generate.arguments import RANDOM
from ..progress import Progress
from ..replay.workload import make_workload
from . import checks, rag
from .prompts import DOCUMENTS_PER_PROMPT, PromptBuilder

_RANDOM = "random:"
_NEW_TOKENS = 32
_MAX_RUNNING = 32
_BATCH = 8  # requests that are retrieved and submitted together


def load(name: str, seed: int) -> models.Loaded:
    """The model of a folder, or of "random:llama", with a tokenizer.

    BadInput if there is none, or transformers is missing.
    """
    kind = name.removeprefix(_RANDOM)
    if name.startswith(_RANDOM) and kind not in RANDOM:
        raise BadInput(
            f"--model {name}: must be a folder or random: and one of {', '.join(RANDOM)}"
        )
    models.require()
    models.use_threads(1)
    loaded = models.random(kind, seed) if name.startswith(_RANDOM) else models.load(name)
    if loaded.tokenizer is None:
        raise BadInput(f"{name}: no tokenizer for the prompts: {loaded.no_tokenizer}")
    return loaded


def run(
    options: Any, loaded: models.Loaded, retrieval: rag.Retrieval, rng: np.random.Generator,
    progress: Progress,
) -> tuple[dict[str, Any], checks.Check]:  # fmt: skip
    """Retrieve and generate for the requests; the figures of serving, and the verdict.

    New requests are retrieved while fewer run than may, so that a time to the first token is that
    of a busy engine. BadInput if the engine refuses the model or a prompt.
    """
    from llmds_nb.integrations.transformers import Engine, SamplingParams

    texts = [question.text for question in retrieval.asked.test]
    asked = make_workload(options.requests, len(texts), rag.RATE_PER_S, rng).question.tolist()

    def tokens(text: str) -> Int32s:
        return np.array(loaded.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    pipeline = retrieval.reloaded
    builder = PromptBuilder(pipeline.get, tokens)

    def batches():
        for begin in range(0, len(asked), _BATCH):
            questions = [texts[number] for number in asked[begin : begin + _BATCH]]
            hits = pipeline.search(questions, DOCUMENTS_PER_PROMPT)
            yield [
                builder.build(tokens(question), ids)
                for question, ids in zip(questions, hits.ids, strict=True)
            ]

    try:
        engine = Engine(
            loaded.model, tokenizer=loaded.tokenizer, n_pages=options.pages,
            page_size=options.page_size, max_running=_MAX_RUNNING, seed=options.seed,
        )  # fmt: skip
    except ValueError as error:
        raise BadInput(str(error)) from None
    with engine, progress.stage("serve", options.requests, "requests"):
        serving.warm_up(engine)
        requests, figures = serving.serve(
            engine, batches(), SamplingParams(max_new_tokens=_NEW_TOKENS, ignore_eos=True),
            serving.Live(None, options.requests), at_once=_MAX_RUNNING,
        )  # fmt: skip
        left = serving.left_over(engine)
    n_ends = [int(len(request.tokens) == _NEW_TOKENS) for request in requests]
    return {"model": loaded.name, **figures}, checks.ended_once(n_ends, left)
