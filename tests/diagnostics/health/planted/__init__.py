"""Faults to plant: what `health` must find, by name, in a run that was sound before."""
