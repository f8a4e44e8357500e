#!/usr/bin/env python3
"""All folds, seeds and swept lines of one system, or a paper's table, and their report.

    python crossval.py hparams/cai_mtl.yaml --data_folder=/corpora/IEMOCAP --sweep alpha=0,0.1 --seeds=1,2 --jobs=2
    python crossval.py hparams/tables/cai_table4.yaml --data_folder=/corpora/IEMOCAP --executor=slurm

Beside its own options (--help) it takes every one of train.py's. Started again, it goes on where it was.
"""

import sys
from pathlib import Path

from speechbrain_ser.errors import libraries_that_load, print_any_name
from speechbrain_ser.training.signals import importing

print_any_name()
with importing(), libraries_that_load():
    from speechbrain_ser.crossval.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent))
