"""SpeechBrain recipes for multi-task speech emotion recognition."""

import logging

__version__ = "0.1.0.dev0"

# on its import SpeechBrain warns that it could not save images with torchvision, which nobody asked for
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in record.getMessage())
