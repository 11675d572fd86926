"""The model of the tests of OpenAI's API: random, its tokens bytes, with a chat template."""

from llmds_nb.integrations.transformers import Engine
from llmds_nb.integrations.transformers.random_models import byte_tokenizer, random_model

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no such role') }}{% endif %}<{{ m.role }}>{{ m.content }}\n"
    "{% endfor %}{% if shout is defined %}!{% endif %}<assistant>"
)


def tokenizer(template=TEMPLATE):
    made = byte_tokenizer()
    made.chat_template = template
    return made


def model(**sizes):
    # Tokens are ASCII where 128 are all there are: every text is what its tokens say.
    given = {"vocab_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512, **sizes}
    return random_model("llama", **given)


def engine(**options):
    given = {
        "tokenizer": tokenizer(), "n_pages": 400, "page_size": 8, "max_step_tokens": 256,
        "self_check": False, **options,
    }  # fmt: skip
    return Engine(model(), **given)


def nothing_is_held(engine):
    """Assert that no request and no page of one is left."""
    engine.check()
    stats = engine.cache.stats()
    assert len(engine.batcher) == stats.n_sequences == stats.n_used == 0
    assert stats.n_free + stats.n_cached == stats.n_pages
