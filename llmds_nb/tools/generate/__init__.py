"""The command `generate`: text from a Hugging Face model through an Engine."""
