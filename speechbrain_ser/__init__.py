"""SpeechBrain recipes for multi-task speech emotion recognition."""

__version__ = "0.1.0.dev0"
