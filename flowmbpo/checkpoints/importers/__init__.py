"""Published checkpoints of other projects, read and mapped onto this one's agent."""
