"""Emotions and transcripts of recordings from a trained model, in the manner of ``speechbrain.inference``."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.distributed import infer_device
from torch import nn

from speechbrain_ser.data.audio import BadAudioError, duration_of
from speechbrain_ser.data.batches import SAMPLE_RATE, load_audio
from speechbrain_ser.errors import UserError, nearest
from speechbrain_ser.evaluation.calibration import check_temperature, read_calibration, temperature_of
from speechbrain_ser.inference.package import CONFIG, is_hub_name, load_package
from speechbrain_ser.inference.timeline import WINDOW, Timeline, WindowPlan, follow, plan_windows
from speechbrain_ser.inference.trained import load_model
from speechbrain_ser.models.decoding import Decoder
from speechbrain_ser.models.heads import padded, signals_of
from speechbrain_ser.processing.lengths import absolute_lengths

logger = logging.getLogger(__name__)


LOOK_AHEAD = 8  # batches whose recordings are read before they are sorted by length


CPU_PADDING = 0.5  # seconds that an utterance may lack of its batch's longest: more cost as much as a pass of its own


RUN_OPTS = {"device": None, "precision": "fp32"}


NOT_FINITE_OUTPUT = "the model's output is not finite"


SILENT = "silent: all samples are the same (expected speech)"  # of which a model would say anything


@dataclass(frozen=True)
class Recognition:
    """What was recognised in a recording, or why nothing was.

    Arguments
    ---------
    path : str, optional
        Of the recording; None for a waveform.
    emotion : str, optional
        The likeliest class; None, where there is no error, when even its posterior is below the threshold.
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
        CTC logits and frames to texts (:class:`speechbrain_ser.models.decoding.Decoder`). None: no transcripts; the
        ASR head is taken out as well.
    run_opts : mapping, optional
        As in SpeechBrain: ``device`` (that of the machine by default) and ``precision`` (fp32, bf16, fp16).
    max_seconds : float
        The longest recording that is taken, and the most seconds of a batch, padding included: they bound the memory.
    model_id : str
        By which the model's results are known; a temperature and a threshold are added to it.
    temperature : float
        The logits are divided by it (Guo et al. 2017): above 1 the posteriors are less sure, below 1 surer. 1: as they
        were trained.
    threshold : float
        Keep silent (``emotion`` None) where the largest posterior is below it; from 0, always answer, to 1.

    Raises
    ------
    UserError
        For a model that recognises no emotion, an unknown option or device, a temperature or threshold out of range.

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
        temperature: float = 1.0,
        threshold: float = 0.0,
    ):
        if "emotion" not in model.tasks:
            raise UserError(f"expected a model that recognises emotions, found one for {', '.join(model.tasks)} alone")
        if not max_seconds > 0:
            raise UserError(f"max_seconds: expected seconds > 0, found {max_seconds!r}")
        self.temperature, self.threshold = check_temperature(temperature), _checked_threshold(threshold)
        model.keep_tasks({"emotion", "asr"} if decode else {"emotion"})
        self.classes, self.decode, self.max_seconds = list(classes), decode, max_seconds
        self.model_id = model_id + _settings(self.temperature, self.threshold)
        self.device, self.autocast, half = _run_options(run_opts or {})
        self.max_padding = CPU_PADDING if torch.device(self.device).type == "cpu" else float("inf")
        self.model = _moved(model.eval(), self.device)
        self.longest = getattr(getattr(model, "encoder", None), "max_samples", None)  # a Whisper has no more positions
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
        calibrated: bool = True,
        threshold: float = 0.0,
    ) -> "EmotionRecognizer":
        """The model of a finished run, with the parameters that the run was tested with.

        The run's YAML is executed, as every SpeechBrain YAML is: use only runs that you trust.

        Arguments
        ---------
        run_folder : str or os.PathLike
            ``results/<system>/<corpus>-<protocol>/<variant>/<fold>/<seed>``.
        run_opts, max_seconds, threshold
            See :class:`EmotionRecognizer`.
        transcribe : bool
            Give transcripts where the system has an ASR head; False computes none.
        calibrated : bool
            Use the temperature that was fitted on the run's validation utterances (``calibration.json``); where there
            is none, a log line says so. False: posteriors are those of the run's ``predictions.csv``.

        Returns
        -------
        EmotionRecognizer

        Raises
        ------
        UserError
            When the folder holds no finished run of a system that recognises emotions, or its files do not fit.
        """
        trained = load_model(run_folder)
        if "emotion" not in trained.model.tasks:
            system = trained.metrics.get("system", "it")
            raise UserError(f"{run_folder}: expected a run that recognises emotions, found pre-training ({system})")
        decode = None
        if transcribe and "asr" in trained.model.heads:
            decode = Decoder(trained.tokens, trained.lines["decoding"], trained.lines["beam_size"])
        temperature = _temperature(read_calibration(run_folder), trained.epoch) if calibrated else 1.0
        return cls(
            trained.model, trained.classes, decode, run_opts, max_seconds, trained.digest, temperature, threshold
        )

    @classmethod
    def from_package(
        cls,
        source: str | os.PathLike,
        run_opts: Mapping[str, str] | None = None,
        transcribe: bool = True,
        max_seconds: float = 120.0,
        calibrated: bool = True,
        threshold: float = 0.0,
    ) -> "EmotionRecognizer":
        """The model of a package that ``speechbrain-ser export`` wrote: what its run says, to 1e-4.

        Nothing of the package is executed, whoever it is from: it is plain JSON and safetensors, its classes are of a
        fixed table (:mod:`speechbrain_ser.inference.package`), and the hashes of all its files are checked first.

        Arguments
        ---------
        source : str or os.PathLike
            The package's folder, or its name on the Hugging Face hub (``user/model``).
        run_opts, max_seconds, threshold
            See :class:`EmotionRecognizer`.
        calibrated : bool
            Posteriors with the temperature that was fitted on the run's validation utterances; False: as trained.
        transcribe : bool
            Give transcripts where the system has an ASR head; False computes none.

        Returns
        -------
        EmotionRecognizer

        Raises
        ------
        UserError
            Naming the file of the package, what was expected and what was found.
        """
        package, decode = load_package(source), None
        if transcribe and package.tokens is not None:
            decode = Decoder(package.tokens, **package.decoding)
        temperature = _temperature(package.calibration) if calibrated else 1.0
        return cls(
            package.model, package.classes, decode, run_opts, max_seconds, package.digest, temperature, threshold
        )

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
        items = [self._prepare_whole(wav[:n].float().cpu()) for wav, n in zip(wavs, lengths, strict=True)]
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
        _check_batch_size(batch_size)
        return self._stream(paths, batch_size, embedding)

    def timeline(
        self,
        path: str | os.PathLike,
        duration: float = WINDOW,
        step: float | None = None,
        batch_size: int = 8,
        progress: bool = False,
    ) -> Timeline:
        """Recognise a recording of any length in overlapping windows.

        The memory does not grow with the recording. Each step's posteriors are the mean of the windows that cover it;
        steps of the same emotion make a segment. A recording of at most `duration` is one window, and its result is
        that of :meth:`classify_file`.

        Arguments
        ---------
        path : str or os.PathLike
            The recording.
        duration : float
            Seconds of a window. The default is about an utterance of the corpora that models are trained on (EMO-DB's
            mean is 2.8 s, IEMOCAP's 4.4 s): what a window is to the model, and short enough to follow changes.
        step : float, optional
            Seconds from one window to the next, and of the posteriors. None: half of `duration`, so that every moment
            is heard twice, and once away from a window's edge.
        batch_size : int
            Windows a batch, at most.
        progress : bool
            Show on a terminal how many seconds are done.

        Returns
        -------
        Timeline

        Raises
        ------
        UserError
            Saying what is wrong with the recording, the window or the step.
        """
        (found,) = self.timelines([path], duration, step, batch_size, progress)
        if found.error is not None:
            raise UserError(f"{path}: {found.error}")
        return found

    def timelines(
        self,
        paths: Iterable[str | os.PathLike],
        duration: float = WINDOW,
        step: float | None = None,
        batch_size: int = 8,
        progress: bool = False,
    ) -> Iterator[Timeline]:
        """Recognise many recordings of any lengths, one after the other (:meth:`timeline`).

        Arguments
        ---------
        paths : iterable of str or os.PathLike
            The recordings; read as results are asked for.
        duration, step, batch_size, progress
            See :meth:`timeline`.

        Returns
        -------
        iterator of Timeline
            In the order of `paths`; a recording that cannot be read, or is too short, carries its error.

        Raises
        ------
        UserError
            For a window, a step or a batch size that cannot be.
        """
        _check_batch_size(batch_size)
        plan = plan_windows(self, duration, step)
        batch_size = min(batch_size, max(1, int(self.max_seconds / duration)))
        return (self._timeline(path, plan, batch_size, progress) for path in paths)

    def window_outputs(self, wavs: Sequence[torch.Tensor]) -> tuple[np.ndarray, list[torch.Tensor] | None]:
        """What the model says of windows of a recording.

        Arguments
        ---------
        wavs : sequence of torch.Tensor
            [time] each, 16 kHz.

        Returns
        -------
        numpy.ndarray
            Posteriors [windows, classes].
        list of torch.Tensor, or None
            CTC logits [frames, tokens] of each, on the CPU; None where the model does not transcribe.

        Raises
        ------
        BadAudioError
            When the model has no answer to one of them.
        """
        items = [self._prepare(wav) for wav in wavs]
        if error := next((item.error for item in items if item.error), None):
            raise BadAudioError(error)
        outputs = self._outputs([item.signals for item in items])
        posteriors = self._posteriors(outputs)
        if not posteriors.isfinite().all():
            raise BadAudioError(NOT_FINITE_OUTPUT)
        if self.decode is None:
            return posteriors.numpy(), None
        logits, frames = outputs["asr"].float().cpu(), outputs["frames"].tolist()
        return posteriors.numpy(), [of_one[:n] for of_one, n in zip(logits, frames, strict=True)]

    def emotion_of(self, posterior: torch.Tensor | np.ndarray) -> str | None:
        """The emotion that a posterior [classes] speaks for; None: too little for the threshold."""
        likeliest = int(posterior.argmax())
        return self.classes[likeliest] if float(posterior[likeliest]) >= self.threshold else None

    # -------------------------------------------------------------- work

    def _timeline(self, path: str | os.PathLike, plan: WindowPlan, batch_size: int, progress: bool) -> Timeline:
        try:
            seconds = duration_of(path)
            if error := self._too_short(seconds):
                raise BadAudioError(error)
            found = follow(self, path, seconds, plan, batch_size, progress)
            if found.envelope.min() == found.envelope.max():
                raise BadAudioError(SILENT)
            return found
        except BadAudioError as defect:
            return Timeline(os.fspath(path), error=defect.words)

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
            return self._prepare_whole(load_audio(path), os.fspath(path))
        except BadAudioError as defect:
            return _Item(os.fspath(path), error=defect.words)
        except Exception as error:  # whatever it is, the other recordings do not suffer from it
            return _Item(os.fspath(path), error=f"{type(error).__name__}: {error}")

    def _prepare_whole(self, wav: torch.Tensor, path: str | None = None) -> "_Item":
        """A recording; a window of one may well be silent."""
        item = self._prepare(wav, path)
        return _Item(path, error=SILENT) if item.error is None and wav.min() == wav.max() else item

    def _wrong_length(self, seconds: float) -> str | None:
        if seconds > self.max_seconds:
            return (
                f"too long: {seconds:.1f} s (expected at most max_seconds, {self.max_seconds:g} s; "
                "--window takes recordings of any length, as does EmotionRecognizer.timeline)"
            )
        if self.longest and seconds * SAMPLE_RATE > self.longest:
            return (
                f"too long: {seconds:.1f} s (the model's Whisper encodes at most {self.longest / SAMPLE_RATE:g} s; "
                "--window takes recordings of any length, as does EmotionRecognizer.timeline)"
            )
        return self._too_short(seconds)

    def _too_short(self, seconds: float) -> str | None:
        least = self.model.min_samples / SAMPLE_RATE
        if seconds < least:
            return f"too short: {1000 * seconds:.1f} ms (expected at least {1000 * least:.1f} ms, which make a frame)"
        return None

    @torch.inference_mode()
    def _prepare(self, wav: torch.Tensor, path: str | None = None) -> "_Item":
        """What the model reads of a waveform [time], or why it can read nothing."""
        if error := self._wrong_length(len(wav) / SAMPLE_RATE):
            return _Item(path, error=error)
        if not wav.isfinite().all():
            return _Item(path, error="NaN or infinite samples (expected finite ones)")
        return _Item(path, signals_of(self.model, wav), len(wav) / SAMPLE_RATE)

    def _classify(self, items: list["_Item"], batch_size: int, embedding: bool) -> list[Recognition]:
        """Results in the order of the items."""
        found = [Recognition(item.path, error=item.error) for item in items]
        for batch in _batches([item.seconds for item in items], batch_size, self.max_seconds, self.max_padding):
            for k, result in zip(batch, self._forward([items[k].signals for k in batch], embedding), strict=True):
                found[k] = replace(result, path=items[k].path)
        return found

    def _forward(self, signals: list[dict[str, torch.Tensor]], embedding: bool) -> list[Recognition]:
        outputs = self._outputs(signals)
        texts = self.decode(outputs["asr"], outputs["frames"]) if self.decode else [None] * len(signals)
        vectors = outputs["embedding"].float().cpu() if embedding else [None] * len(signals)
        return [self._result(*of_one) for of_one in zip(self._posteriors(outputs), texts, vectors, strict=True)]

    @torch.inference_mode()
    def _outputs(self, signals: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What the model makes of a batch."""
        inputs = padded(signals, self.device)
        with self.autocast:
            return self.model(**inputs)

    def _posteriors(self, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[batch, classes], on the CPU."""
        return (outputs["emotion"].float() / self.temperature).softmax(-1).cpu()

    def _result(self, posterior: torch.Tensor, text: str | None, vector: torch.Tensor | None) -> Recognition:
        if not posterior.isfinite().all():
            return Recognition(error=NOT_FINITE_OUTPUT)
        posteriors = dict(zip(self.classes, posterior.tolist(), strict=True))
        return Recognition(None, self.emotion_of(posterior), posteriors, text, vector)


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


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size: expected a whole number >= 1, found {batch_size!r}")


def _temperature(calibration: dict | None, epoch: int | None = None) -> float:
    """That of a calibration; a log line where there is none."""
    temperature, reason = temperature_of(calibration, epoch)
    if reason is not None:
        logger.warning(f"uncalibrated: {reason}")
    return temperature


def _checked_threshold(threshold: float) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise UserError(f"threshold: expected a number from 0 to 1, found {threshold!r}")
    return float(threshold)


def _settings(temperature: float, threshold: float) -> str:
    """What changes results of the same parameters.

    Example
    -------
    >>> _settings(1.3712, 0.6), _settings(1.0, 0.0)
    ('-temperature=1.3712-threshold=0.6', '')
    """
    found = {"temperature": (temperature, 1.0), "threshold": (threshold, 0.0)}
    return "".join(f"-{name}={value:.6g}" for name, (value, default) in found.items() if value != default)


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


def open_recognizer(model: str | os.PathLike, **options) -> EmotionRecognizer:
    """A recogniser by whatever names its model.

    A folder with a config.json is a package, of which nothing is executed; any other folder is a run, whose YAML is.

    Arguments
    ---------
    model : str or os.PathLike
        A run's folder, a package's folder, or ``user/model`` on the hub.
    **options
        Those of :meth:`EmotionRecognizer.from_run` and :meth:`EmotionRecognizer.from_package`.

    Returns
    -------
    EmotionRecognizer

    Raises
    ------
    UserError
        As these two do.
    """
    is_package = os.path.lexists(Path(model) / CONFIG) or is_hub_name(os.fspath(model))
    return (EmotionRecognizer.from_package if is_package else EmotionRecognizer.from_run)(model, **options)
