"""Emotions and transcripts of recordings from a trained model, in the manner of ``speechbrain.inference``."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.distributed import infer_device
from torch import nn

from speechbrain_ser.corpora.audio import BadAudioError, duration_of
from speechbrain_ser.dataio import SAMPLE_RATE, load_audio
from speechbrain_ser.decoding import Decoder
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.nnet.lengths import absolute_lengths
from speechbrain_ser.tokens import load_tokens
from speechbrain_ser.trained import load_model

logger = logging.getLogger(__name__)

LOOK_AHEAD = 8  # batches whose recordings are read before they are sorted by length
CPU_PADDING = 0.5  # seconds that an utterance may lack of its batch's longest: more cost as much as a pass of its own
RUN_OPTS = {"device": None, "precision": "fp32"}


@dataclass(frozen=True)
class Recognition:
    """What was recognised in a recording, or why nothing was.

    Arguments
    ---------
    path : str, optional
        Of the recording; None for a waveform.
    emotion : str, optional
        The likeliest class.
    posteriors : dict of str to float
        By class; empty where there is an error.
    transcript : str, optional
        Where the model has an ASR head, and it was asked for.
    embedding : torch.Tensor, optional
        [channels], on the CPU, what the emotion head reads; on request.
    error : str, optional
        What is wrong with the recording; None where all is well.
    """

    path: str | None = None
    emotion: str | None = None
    posteriors: dict[str, float] = field(default_factory=dict)
    transcript: str | None = None
    embedding: torch.Tensor | None = field(default=None, repr=False, compare=False)
    error: str | None = None


class EmotionRecognizer:
    """A trained model, ready to use.

    What is said of a recording does not depend on the others of its batch (to 1e-4), and equals what training's own
    test says of it.

    Arguments
    ---------
    model : torch.nn.Module
        One of :mod:`speechbrain_ser.models`. What only the emotion and the transcript do not need (speaker head,
        decoder) is taken out of it.
    classes : sequence of str
        Emotion classes, in the order of the logits.
    decode : callable, optional
        CTC logits and frames to texts (:class:`speechbrain_ser.decoding.Decoder`). None: no transcripts; the ASR head
        is taken out as well.
    run_opts : mapping, optional
        As in SpeechBrain: ``device`` (that of the machine by default) and ``precision`` (fp32, bf16, fp16).
    max_seconds : float
        The longest recording that is taken, and the most seconds of a batch, padding included: they bound the memory.
    model_id : str
        By which the model's results are known.

    Raises
    ------
    UserError
        For a model that recognises no emotion, an unknown option or device.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
    >>> from speechbrain_ser.models.fu import FuModel
    >>> from speechbrain_ser.processing.log_mel import LogMel
    >>> lobe = CNNBLSTMAttention(128, channels=(8, 8, 8), bottleneck=8, lstm_size=4, heads=2)
    >>> heads = {"emotion": partial(nn.Linear, out_features=2)}
    >>> model = FuModel(LogMel(), lobe, heads, loss_weights={"emotion": 1.0})
    >>> recognizer = EmotionRecognizer(model, ["angry", "sad"], run_opts={"device": "cpu"})
    >>> first, second = recognizer.classify_batch(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> first.emotion in ("angry", "sad"), sorted(first.posteriors), round(sum(second.posteriors.values()), 3)
    (True, ['angry', 'sad'], 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        decode: Callable[[torch.Tensor, torch.Tensor], list[str]] | None = None,
        run_opts: Mapping[str, str] | None = None,
        max_seconds: float = 120.0,
        model_id: str = "",
    ):
        if "emotion" not in model.tasks:
            raise UserError(f"expected a model that recognises emotions, found one for {', '.join(model.tasks)} alone")
        if not max_seconds > 0:
            raise UserError(f"max_seconds: expected seconds > 0, found {max_seconds!r}")
        model.keep_tasks({"emotion", "asr"} if decode else {"emotion"})
        self.classes, self.decode, self.max_seconds, self.model_id = list(classes), decode, max_seconds, model_id
        self.device, self.autocast, half = _run_options(run_opts or {})
        self.max_padding = CPU_PADDING if torch.device(self.device).type == "cpu" else float("inf")
        self.model = _moved(model.eval(), self.device)
        for lobe in [module for module in model.modules() if hasattr(module, "fix_weights")]:
            lobe.fix_weights(half)
        if by_gender := getattr(model.inputs.get("f0"), "by_gender", None):
            low, high = model.inputs["f0"].f_range
            logger.warning(
                f"the model was trained on F0 in a range for each gender ({', '.join(by_gender)}); the gender of who "
                f"speaks is not known here: F0 is looked for from {low:g} to {high:g} Hz"
            )

    @classmethod
    def from_run(
        cls,
        run_folder: str | os.PathLike,
        run_opts: Mapping[str, str] | None = None,
        transcribe: bool = True,
        max_seconds: float = 120.0,
    ) -> "EmotionRecognizer":
        """The model of a finished run, with the parameters that the run was tested with.

        The run's YAML is executed, as every SpeechBrain YAML is: use only runs that you trust.

        Arguments
        ---------
        run_folder : str or os.PathLike
            ``results/<system>/<corpus>-<protocol>/<variant>/<fold>/<seed>``.
        run_opts, max_seconds
            See :class:`EmotionRecognizer`.
        transcribe : bool
            Give transcripts where the system has an ASR head; False computes none.

        Returns
        -------
        EmotionRecognizer

        Raises
        ------
        UserError
            When the folder holds no finished run of a system that recognises emotions, or its files do not fit.
        """
        trained, save = load_model(run_folder), Path(run_folder) / "save"
        if "emotion" not in trained.model.tasks:
            system = trained.metrics.get("system", "it")
            raise UserError(f"{run_folder}: expected a run that recognises emotions, found pre-training ({system})")
        decode = None
        if transcribe and "asr" in trained.model.heads:
            tokens = _saved(load_tokens, save / "tokens.json")
            decode = Decoder(tokens, trained.lines["decoding"], trained.lines["beam_size"])
        classes = _saved(lambda path: json.loads(path.read_text(encoding="utf-8")), save / "classes.json")
        return cls(trained.model, classes, decode, run_opts, max_seconds, trained.digest)

    # -------------------------------------------------------------- use

    def classify_file(self, path: str | os.PathLike, embedding: bool = False) -> Recognition:
        """Recognise one recording of any format that soundfile reads, any rate and any number of channels.

        Arguments
        ---------
        path : str or os.PathLike
            The recording.
        embedding : bool
            Also give the vector that the emotion head reads.

        Returns
        -------
        Recognition

        Raises
        ------
        UserError
            Saying what is wrong with the recording.
        """
        (found,) = self.classify_files([path], embedding=embedding)
        if found.error is not None:
            raise UserError(f"{path}: {found.error}")
        return found

    def classify_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None, embedding: bool = False
    ) -> list[Recognition]:
        """Recognise waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            [batch, time], or [time] for one, 16 kHz, right-padded.
        wav_lens : torch.Tensor, optional
            Relative lengths [batch]; None: nothing is padded.
        embedding : bool
            Also give the vector that the emotion head reads.

        Returns
        -------
        list of Recognition
            In the batch's order; one that is too short, or not finite, carries its error.

        Raises
        ------
        UserError
            When these are no such tensors.
        """
        wavs = wavs[None] if wavs.dim() == 1 else wavs
        if not wavs.is_floating_point():
            raise UserError(f"wavs: expected floating-point samples, found {wavs.dtype}")
        try:
            lengths = absolute_lengths(wavs, wav_lens).tolist()
        except ValueError as error:
            raise UserError(str(error)) from error
        items = [self._prepare(wav[:n].float().cpu()) for wav, n in zip(wavs, lengths, strict=True)]
        return self._classify(items, len(items), embedding)

    def classify_files(
        self, paths: Iterable[str | os.PathLike], batch_size: int = 8, embedding: bool = False
    ) -> Iterator[Recognition]:
        """Recognise many recordings, in batches of similar lengths.

        No more than :data:`LOOK_AHEAD` batches are read ahead, so that memory does not grow with their number.

        Arguments
        ---------
        paths : iterable of str or os.PathLike
            The recordings; read as results are asked for.
        batch_size : int
            Recordings a batch, at most.
        embedding : bool
            Also give the vector that the emotion head reads.

        Returns
        -------
        iterator of Recognition
            In the order of `paths`; a recording that cannot be read, or is too short, carries its error.

        Raises
        ------
        UserError
            For a batch size below 1.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size: expected a whole number >= 1, found {batch_size!r}")
        return self._stream(paths, batch_size, embedding)

    # -------------------------------------------------------------- work

    def _stream(self, paths, batch_size: int, embedding: bool) -> Iterator[Recognition]:
        window, seconds = [], 0.0
        for path in paths:
            window.append(self._read(path))
            seconds += window[-1].seconds
            if len(window) >= LOOK_AHEAD * batch_size or seconds >= LOOK_AHEAD * self.max_seconds:
                yield from self._classify(window, batch_size, embedding)
                window, seconds = [], 0.0
        yield from self._classify(window, batch_size, embedding)

    def _read(self, path: str | os.PathLike) -> "_Item":
        try:
            seconds = duration_of(path)
            if error := self._wrong_length(seconds):  # known before a recording of hours is in memory
                return _Item(os.fspath(path), error=error)
            return self._prepare(load_audio(path), os.fspath(path))
        except BadAudioError as defect:
            return _Item(os.fspath(path), error=defect.words)
        except Exception as error:  # whatever it is, the other recordings do not suffer from it
            return _Item(os.fspath(path), error=f"{type(error).__name__}: {error}")

    def _wrong_length(self, seconds: float) -> str | None:
        least = self.model.min_samples / SAMPLE_RATE
        if seconds < least:
            return f"too short: {1000 * seconds:.1f} ms (expected at least {1000 * least:.1f} ms, which make a frame)"
        if seconds > self.max_seconds:
            return f"too long: {seconds:.1f} s (expected at most max_seconds, {self.max_seconds:g} s)"
        return None

    @torch.inference_mode()
    def _prepare(self, wav: torch.Tensor, path: str | None = None) -> "_Item":
        """What the model reads of a waveform [time], or why it can read nothing."""
        if error := self._wrong_length(len(wav) / SAMPLE_RATE):
            return _Item(path, error=error)
        if not wav.isfinite().all():
            return _Item(path, error="NaN or infinite samples (expected finite ones)")
        signals = {n: wav if features is None else features.extract(wav) for n, features in self.model.inputs.items()}
        return _Item(path, signals, len(wav) / SAMPLE_RATE)

    def _classify(self, items: list["_Item"], batch_size: int, embedding: bool) -> list[Recognition]:
        """Results in the order of the items."""
        found = [Recognition(item.path, error=item.error) for item in items]
        for batch in _batches([item.seconds for item in items], batch_size, self.max_seconds, self.max_padding):
            for k, result in zip(batch, self._forward([items[k].signals for k in batch], embedding), strict=True):
                found[k] = replace(result, path=items[k].path)
        return found

    @torch.inference_mode()
    def _forward(self, signals: list[dict[str, torch.Tensor]], embedding: bool) -> list[Recognition]:
        inputs = {}
        for name in self.model.inputs:
            data, lengths = batch_pad_right([each[name] for each in signals])
            inputs[name] = PaddedData(data.to(self.device), lengths.to(self.device))
        with self.autocast:
            outputs = self.model(**inputs)
        posteriors = outputs["emotion"].float().softmax(-1).cpu()  # (batch, classes)
        texts = self.decode(outputs["asr"], outputs["frames"]) if self.decode else [None] * len(signals)
        vectors = outputs["embedding"].float().cpu() if embedding else [None] * len(signals)
        return [self._result(*of_one) for of_one in zip(posteriors, texts, vectors, strict=True)]

    def _result(self, posterior: torch.Tensor, text: str | None, vector: torch.Tensor | None) -> Recognition:
        if not posterior.isfinite().all():
            return Recognition(error="the model's output is not finite")
        posteriors = dict(zip(self.classes, posterior.tolist(), strict=True))
        return Recognition(None, self.classes[int(posterior.argmax())], posteriors, text, vector)


@dataclass(frozen=True)
class _Item:
    """A recording as the model reads it, or its error."""

    path: str | None
    signals: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0  # 0: nothing to recognise
    error: str | None = None


def _batches(
    seconds: Sequence[float], batch_size: int, max_seconds: float, max_padding: float = float("inf")
) -> Iterator[list[int]]:
    """Indices of recordings of similar lengths, the longest first; those of no length are left out.

    A batch lasts no more than `max_seconds` with its padding, and none of it has more than `max_padding` seconds.

    Example
    -------
    >>> list(_batches([1.0, 9.0, 0.0, 2.0, 5.0, 1.5], 3, 10.0))
    [[1], [4, 3], [5, 0]]
    >>> list(_batches([1.0, 9.0, 0.0, 2.0, 5.0, 1.5], 3, 10.0, max_padding=1.0))
    [[1], [4], [3, 5, 0]]
    """
    order = sorted((k for k, s in enumerate(seconds) if s > 0), key=lambda k: -seconds[k])
    while order:
        longest = seconds[order[0]]
        similar = sum(seconds[k] >= longest - max_padding for k in order)
        n = max(1, min(batch_size, similar, int(max_seconds / longest)))
        yield order[:n]
        order = order[n:]


def _saved(load: Callable, path: Path):
    """What a run has kept beside its parameters."""
    try:
        return load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected the file of a finished run, found none") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected what a run writes, found something else ({error})") from error


def _run_options(run_opts: Mapping[str, str]) -> tuple[str, TorchAutocast, torch.dtype | None]:
    """Device, autocast and its type (None: none)."""
    if unknown := [f"{o}{nearest(o, RUN_OPTS)}" for o in run_opts if o not in RUN_OPTS]:
        raise UserError(f"run_opts: unknown {', '.join(unknown)}; known: {', '.join(RUN_OPTS)}")
    options = {**RUN_OPTS, **run_opts}
    device = options["device"] or infer_device()
    try:
        kind = torch.device(device).type
        dtype = AMPConfig.from_name(options["precision"]).dtype
        return device, TorchAutocast(device_type=kind, dtype=dtype), None if dtype == torch.float32 else dtype
    except (RuntimeError, ValueError) as error:
        raise UserError(f"run_opts: {error}") from error


def _moved(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # a driver or a build of torch that has no such device
        raise UserError(f"device: {device} cannot be used: {error}") from error
