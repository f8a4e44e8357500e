"""What the command `speechbrain-ser predict` does: find recordings, recognise them, write results that resume."""
