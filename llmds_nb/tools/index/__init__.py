"""The command `index`: reads texts, splits them into chunks, and keeps an index of them."""
