"""OpenAI's API over an Engine: completions, chats (with documents, too), embeddings, models.

Routes of `create_app(pipeline, engine=engine)`: /v1/completions and /v1/chat/completions, as a
whole or as server-sent events, /v1/embeddings, /v1/models. All requests run in one batch.
`fields` says which fields there are, `retrieval` how documents come into a chat.
"""

from .routes import routes

__all__ = ["routes"]
