#!/usr/bin/env python3
"""Train and test one system on one fold: ``python train.py hparams/cai_mtl.yaml --data_folder=/corpora/IEMOCAP``.

Every line of the YAML can be changed on the command line (``--alpha=0``), beside SpeechBrain's run options
(``--device=cuda:0``, ``--precision=bf16``, ``--debug``, …).
"""

import sys
from pathlib import Path

from speechbrain_ser.errors import libraries_that_load, print_any_name
from speechbrain_ser.training.signals import end_with_parent, importing

end_with_parent()  # before the seconds that the next import takes
print_any_name()
with importing(), libraries_that_load():
    from speechbrain_ser.training.run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).parent / "hparams"))
