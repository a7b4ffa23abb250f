"""Datasets on disk: written once, read in shuffled windows without ever being held whole."""
