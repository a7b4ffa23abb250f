"""Published datasets into the project's own format; their pickles are read, never run."""
