"""Many runs of train.py: which (plan), where and in what order (schedule, slurm), what came of them (program).

Nothing is imported here: a Slurm job needs `slurm` alone.
"""
