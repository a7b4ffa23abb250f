"""What is broken in a run: one check per part, a verdict over all of them."""
