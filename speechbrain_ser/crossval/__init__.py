"""Many runs of train.py: which (plan), where (local, slurm), in what order (schedule), what came of them (report)."""

from speechbrain_ser.crossval.program import main

__all__ = ["main"]
