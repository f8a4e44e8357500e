"""Many runs of train.py: which (plan), where (local, slurm), in what order (schedule), what came of them (report).

Nothing is imported here: a Slurm job needs `slurm_job` alone.
"""
