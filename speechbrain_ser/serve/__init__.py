"""A page on the local machine: record or drop speech, see what a trained model makes of it."""
