"""What every domain is built on: compiling, passing state, validation, files. Knows no domain."""
