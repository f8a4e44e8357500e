"""The manifest: one CSV row an utterance, the only thing that recipes know of a corpus."""

COLUMNS = (
    "ID",
    "wav",
    "duration",
    "emotion",
    "speaker",
    "gender",
    "session",
    "dialog",
    "transcript",
    "language",
    "corpus",
)


class CorpusError(ValueError):
    """A corpus folder, table or recording is not what it should be; the message lists every offender."""
