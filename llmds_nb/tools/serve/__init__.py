"""The command `serve`: a saved index, or a model, over HTTP."""
