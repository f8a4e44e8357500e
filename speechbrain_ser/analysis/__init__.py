"""Decomposed speech to look at and listen to: what a model makes of a recording, and of two recordings' parts."""
