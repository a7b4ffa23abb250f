"""Tasks of dflex, a simulator that the user installs: its licence is non-commercial, nothing of it is part of this."""
