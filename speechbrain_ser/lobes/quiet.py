"""Keep transformers' loading bars, reports and deprecations out of the log."""

import contextlib
import warnings
from collections.abc import Iterator

from transformers.utils import logging

# WavLM of transformers 5 gives torch's attention a boolean and a float mask: torch adds them, and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it, transformers says nothing below an error; whoever loads checks the report itself.

    Example
    -------
    >>> with quiet_transformers():
    ...     logging.get_logger("transformers").warning("not shown")
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
