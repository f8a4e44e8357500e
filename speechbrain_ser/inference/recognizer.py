"""Emotions and transcripts of recordings from a trained model, in the manner of ``speechbrain.inference``."""

import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from torch import nn

from speechbrain_ser.data.audio import SILENT, BadAudioError, claimed_seconds, duration_of
from speechbrain_ser.data.batches import SAMPLE_RATE, checked_device, load_audio
from speechbrain_ser.data.labels import DIMENSIONS
from speechbrain_ser.data.text import CharacterTokens, SentencePieceTokens, load_tokens
from speechbrain_ser.errors import Untrusted, UserError, nearest
from speechbrain_ser.evaluation.calibration import check_temperature, read_calibration, temperature_of
from speechbrain_ser.evaluation.metrics import SELECTIONS
from speechbrain_ser.evaluation.runs import read_metrics
from speechbrain_ser.files import AGAIN, read_csv, read_json, sha256
from speechbrain_ser.inference.package import CONFIG, Package, is_hub_name, load_package
from speechbrain_ser.inference.timeline import MIN_SPEECH, WINDOW, Timeline, WindowPlan, follow, plan_windows
from speechbrain_ser.lobes.backbone import settings_kept_in
from speechbrain_ser.models.checkpoints import BACKBONES, CheckpointReader, find_epoch, load_parameters
from speechbrain_ser.models.heads import Decoder, padded, signals_of
from speechbrain_ser.processing.lengths import absolute_lengths
from speechbrain_ser.processing.voice_activity import BY_ENERGY, method, speech_share

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel(Package):
    """What a run learned: what a package holds, and more."""

    metrics: dict  # the run's metrics.json
    epoch: int  # whose parameters these are
    lines: dict  # of the run's hyperparams.yaml, those that are text or numbers


def load_model(run_folder: str | os.PathLike, trust_run: bool = True) -> TrainedModel:
    """Load the model of a finished run: ``results/<system>/<corpus>-<protocol>/<variant>/<fold>/<seed>``.

    The run's ``hyperparams.yaml`` is executed, as every SpeechBrain YAML is: load only runs that you trust. Without
    `trust_run` these are the runs below ``results/`` in the working folder; of any other nothing is executed.
    """
    folder = finished(run_folder)
    if not (trust_run or folder.resolve().is_relative_to(Path("results").resolve())):
        raise Untrusted(
            f"{folder}: expected a package, of which nothing is executed, or a run of your own below ./results; found "
            "another run, whose hyperparams.yaml is code. If you trust whoever made it:"
        )
    logger.info(f"executing {folder / 'hyperparams.yaml'}")
    metrics = read_metrics(folder)
    checkpoint = find_epoch(CheckpointReader(folder / "save"), max_key=SELECTIONS[metrics["selection"]].score)
    if checkpoint is None:
        raise UserError(f"{folder / 'save'}: expected a checkpoint of a finished epoch, found none")
    tree = read_yaml(folder / "hyperparams.yaml")
    with settings_kept_in(folder / "save" / BACKBONES, is_trained=True):
        model = _build(tree, folder / "hyperparams.yaml")
    try:
        load_parameters(model, checkpoint)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{checkpoint.path}: its parameters do not fit the run's own model: {error}") from error
    lines = {name: value for name, value in tree.items() if value is None or isinstance(value, str | int | float)}
    classes = read_json(folder / "save" / "classes.json", list, AGAIN)
    tokens = _read_tokens(folder / "save" / "tokens.json") if "asr" in model.heads else None
    return TrainedModel(
        model=model.eval(),
        classes=classes,
        tokens=tokens,
        decoding=None if tokens is None else {"kind": lines["decoding"], "beam_size": lines["beam_size"]},
        calibration=read_calibration(folder),
        digest=sha256(checkpoint.paramfiles["model"])[:16],
        recordings=_known(folder, metrics["speaker_disjoint"]),
        metrics=metrics,
        epoch=checkpoint.meta["epoch"],
        lines=lines,
    )


def _known(run: Path, is_disjoint: bool) -> frozenset[str] | None:
    """Digests of what a run knows: all recordings but those that it tests, or all, where it leaks; None: unknown.

    What is held out of training (`seen`), or chooses the epoch, is of speakers who are trained on, or is used.
    """
    path = run / "save" / "recordings.json"
    if not path.is_file():  # a run of an earlier version
        return None
    tested, every = set(), read_json(path, dict, AGAIN)
    if is_disjoint:
        found = (run / f"predictions{part}.csv" for part in ("", "_second"))
        tested = {name for table in found if table.is_file() for name in read_csv(table, ["ID"], dtype=str)["ID"]}
    return frozenset(digest for name, digest in every.items() if name not in tested)


def _read_tokens(path: Path) -> CharacterTokens | SentencePieceTokens:
    try:
        return load_tokens(path)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: expected what a run writes, found something else ({error!r})") from error


def finished(run_folder: str | os.PathLike) -> Path:
    """Return a run's folder; a run that is not finished is a UserError."""
    folder = Path(run_folder)
    if lacking := [n for n in ("hyperparams.yaml", "metrics.json") if not (folder / n).is_file()]:
        raise UserError(f"{folder}: expected the folder of a finished run, found no {' and no '.join(lacking)}")
    return folder


def read_yaml(path: Path) -> dict:
    """Return the YAML with its tags, nothing of it executed."""
    try:
        tree = ruamel.yaml.YAML().load(text := path.read_text(encoding="utf-8"))
    except (ruamel.yaml.error.YAMLError, UnicodeError) as error:
        raise UserError(f"{path}: expected YAML: {error}{AGAIN}") from error
    if not isinstance(tree, dict) or "brain_class" not in tree or not text.endswith("\n"):  # which comes late
        raise UserError(f"{path}: expected all lines of a run, found some{AGAIN}")
    return tree


def _build(tree: dict, path: Path) -> nn.Module:
    """Build the line `model` alone, with what it refers to: no optimiser, no Brain, no seed for the whole program."""
    yaml = ruamel.yaml.YAML()
    yaml.width = 10_000
    stream = io.StringIO()
    try:
        yaml.dump({"model": tree["model"]}, stream)
        return load_hyperpyyaml(io.StringIO(stream.getvalue()))["model"]
    except (ruamel.yaml.error.YAMLError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no model can be built from it: {error}") from error


LOOK_AHEAD = 8  # batches whose recordings are read before they are sorted by length
CPU_PADDING = 0.5  # seconds that an utterance may lack of its batch's longest: more cost as much as a pass of its own
RUN_OPTS = {"device": None, "precision": "fp32"}
NOT_FINITE_OUTPUT = "the model's output is not finite"


@dataclass(frozen=True)
class Recognition:
    """What was recognised in a recording, or why nothing was."""

    path: str | None = None  # None for a waveform
    emotion: str | None = None  # the likeliest class; None: its posterior is below the threshold, or no speech
    posteriors: dict[str, float] = field(default_factory=dict)
    transcript: str | None = None  # where the model has an ASR head, and it was asked for
    dimensions: dict[str, float] = field(default_factory=dict)  # ratings in the unit of the model's corpus
    embedding: torch.Tensor | None = field(default=None, repr=False, compare=False)  # [channels], on request
    speech: float | None = None  # share of the time, 0 to 1, in which somebody speaks; None: not looked for
    error: str | None = None  # what is wrong with the recording

    def to_dict(self) -> dict:
        """Return plain data: numbers rounded to six digits; speech and transcript where there are any."""
        content = {"path": self.path, "emotion": self.emotion}
        content["posteriors"] = {name: round(p, 6) for name, p in self.posteriors.items()}
        content |= {name: round(rating, 6) for name, rating in self.dimensions.items()}
        content |= {} if self.speech is None else {"speech": round(self.speech, 6)}
        return content if self.transcript is None else content | {"transcript": self.transcript}


class EmotionRecognizer:
    """Recognises emotions, and words, with a trained model.

    What is said of a recording does not depend on the others of its batch (to 1e-4), and equals what training's own
    test says of it.

    Arguments
    ---------
    model : torch.nn.Module
        One of :mod:`speechbrain_ser.models`. What emotion and transcript do not need (speaker head, decoder) is taken
        out of it.
    classes : sequence of str
        In the order of the logits.
    decode : callable, optional
        CTC logits and frames to texts (:class:`speechbrain_ser.models.heads.Decoder`). None: no ASR head.
    run_opts : mapping, optional
        As in SpeechBrain: ``device`` (that of the machine by default) and ``precision`` (fp32, bf16, fp16).
    max_seconds : float
        The longest recording that is taken, and the most seconds of a batch, padding included: what bounds the memory.
    model_id : str
        By which the model's results are known; a temperature and a threshold are added to it.
    temperature : float
        The logits are divided by it (Guo et al. 2017); 1: as they were trained.
    threshold : float
        Keep silent (``emotion`` None) where the largest posterior is below it; from 0, always answer, to 1.
    min_speech : float, optional
        Keep silent where somebody speaks in a smaller share of the time, from 0 to 1 (`predict` takes
        :data:`~speechbrain_ser.inference.timeline.MIN_SPEECH`). None: speech is not looked for.

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

    recordings: frozenset[str] | None = None  # digests of what it was trained on; None: not known

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
        min_speech: float | None = None,
    ):
        if "emotion" not in model.tasks:
            raise UserError(f"expected a model that recognises emotions, found one for {', '.join(model.tasks)} alone")
        if not max_seconds > 0:
            raise UserError(f"max_seconds: expected seconds > 0, found {max_seconds!r}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
            raise UserError(f"threshold: expected a number from 0 to 1, found {threshold!r}")
        if min_speech is not None and not 0 <= min_speech <= 1:
            raise UserError(f"min_speech: expected a share from 0 to 1, found {min_speech!r}")
        self.speech_by = None if min_speech is None else method()
        if self.speech_by == "energy":
            logger.warning(BY_ENERGY)
        self.temperature, self.threshold, self.min_speech = check_temperature(temperature), float(threshold), min_speech
        model.keep_tasks({"emotion", "asr"} if decode else {"emotion"})
        self.classes, self.decode, self.max_seconds = list(classes), decode, max_seconds
        settings = {"temperature": (self.temperature, 1.0), "threshold": (self.threshold, 0.0)}  # with their defaults
        settings |= {} if min_speech is None else {"min_speech": (min_speech, MIN_SPEECH)}
        self.model_id = model_id + "".join(
            f"-{s}={value:.6g}" for s, (value, usual) in settings.items() if value != usual
        )
        self.device, self.autocast, half = _run_options(run_opts or {})
        self.max_padding = CPU_PADDING if torch.device(self.device).type == "cpu" else float("inf")
        self.model = model.eval().to(self.device)
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
        calibrated: bool = True,
        trust_run: bool = True,
        **options,
    ) -> "EmotionRecognizer":
        """Load a finished run, with the parameters that it was tested with.

        The run's YAML is executed, as every SpeechBrain YAML is: use only runs that you trust.

        `transcribe`: give transcripts where the system has an ASR head; False computes none. `calibrated`: use the
        temperature that was fitted on the run's validation utterances (``calibration.json``); where there is none, a
        log line says so. False: posteriors are those of the run's ``predictions.csv``. `run_folder` and `trust_run` are
        :func:`load_model`'s, the other options are :class:`EmotionRecognizer`'s (``max_seconds``, ``min_speech``, …).
        """
        trained = load_model(run_folder, trust_run)
        return cls._of(trained, trained.epoch, transcribe, calibrated, run_opts=run_opts, **options)

    @classmethod
    def from_package(
        cls, source: str | os.PathLike, run_opts: Mapping[str, str] | None = None, **options
    ) -> "EmotionRecognizer":
        """Load a package that ``speechbrain-ser export`` wrote, with the options of :meth:`from_run`.

        It says what its run says, to 1e-4. `source` is its folder, or its name on the Hugging Face hub
        (``user/model``). Nothing of it is executed, whoever it is from: it is plain JSON and safetensors, its classes
        are of a fixed table (:mod:`speechbrain_ser.inference.package`), and the hashes of all files are checked first.
        """
        return cls._of(load_package(source), None, run_opts=run_opts, **options)

    @classmethod
    def _of(
        cls, learned: TrainedModel | Package, epoch: int | None, transcribe=True, calibrated=True, **options
    ) -> "EmotionRecognizer":
        decode = Decoder(learned.tokens, **learned.decoding) if transcribe and learned.tokens is not None else None
        temperature, reason = temperature_of(learned.calibration, epoch) if calibrated else (1.0, None)
        if reason is not None:
            logger.warning(f"uncalibrated: {reason}")
        found = cls(learned.model, learned.classes, decode, model_id=learned.digest, temperature=temperature, **options)
        found.recordings = learned.recordings
        return found

    def classify_file(self, path: str | os.PathLike, embedding: bool = False) -> Recognition:
        """Recognise one recording of any format that soundfile reads; what is wrong with it is a UserError.

        `embedding`: also give the vector that the emotion head reads.
        """
        return _sound(self.classify_files([path], embedding=embedding))

    def classify_batch(
        self,
        wavs: torch.Tensor | np.ndarray,
        wav_lens: torch.Tensor | np.ndarray | None = None,
        embedding: bool = False,
    ) -> list[Recognition]:
        """Recognise waveforms [batch, time], or [time], 16 kHz, right-padded where there are `wav_lens` [batch].

        These are SpeechBrain's, relative to the longest. One that is too short, or not finite, carries its error.
        """
        wavs, wav_lens = _as_tensor("wavs", wavs), None if wav_lens is None else _as_tensor("wav_lens", wav_lens)
        wavs = wavs[None] if wavs.dim() == 1 else wavs
        if not wavs.is_floating_point():
            raise UserError(f"wavs: expected floating-point samples, found {wavs.dtype}")
        try:
            lengths = absolute_lengths(wavs, wav_lens).tolist()
        except ValueError as error:
            raise UserError(str(error)) from error
        items = [self._item(wav[:n].float().cpu()) for wav, n in zip(wavs, lengths, strict=True)]
        return self._classify(items, len(items), embedding)

    def classify_files(
        self, paths: Iterable[str | os.PathLike], batch_size: int = 8, embedding: bool = False
    ) -> Iterator[Recognition]:
        """Recognise many recordings, in batches of similar lengths; the results are in the order of `paths`.

        They are read as results are asked for, no more than :data:`LOOK_AHEAD` batches ahead, so that memory does not
        grow with their number. One that cannot be read, or is too short, carries its error.
        """
        _check_batch_size(batch_size)
        _check_paths(paths)
        return self._stream(paths, batch_size, embedding)

    def timeline(self, path: str | os.PathLike, *args, **options) -> Timeline:
        """Recognise one recording of any length in overlapping windows, with the options of :meth:`timelines`.

        A recording of at most a window is one window, and its result is that of :meth:`classify_file`.
        """
        return _sound(self.timelines([path], *args, **options))

    def timelines(
        self,
        paths: Iterable[str | os.PathLike],
        duration: float = WINDOW,
        step: float | None = None,
        batch_size: int = 8,
        progress: bool = False,
    ) -> Iterator[Timeline]:
        """Recognise recordings of any lengths, one after the other, in windows of `duration` every `step` seconds.

        The memory does not grow with the recording. Each step's posteriors are the mean of the windows that cover it;
        steps of the same emotion make a segment. One that cannot be read, or is too short, carries its error.

        By default a window is about an utterance of the corpora that models are trained on (EMO-DB's mean is 2.8 s,
        IEMOCAP's 4.4 s): what it is to the model, and short enough to follow changes. A step is half a window, so that
        every moment is heard twice, and once away from a window's edge. `batch_size`: windows a batch, at most.
        """
        _check_batch_size(batch_size)
        _check_paths(paths)
        if not self.classes:
            raise UserError("a timeline is one of emotions, and this model tells dimensions alone")
        plan = plan_windows(self, duration, step)
        batch_size = min(batch_size, max(1, int(self.max_seconds / duration)))
        return (self._timeline(path, plan, batch_size, progress) for path in paths)

    def window_outputs(self, wavs: Sequence[torch.Tensor]) -> tuple[np.ndarray, list[torch.Tensor] | None]:
        """Return posteriors [windows, classes] of windows [time] of a recording, and each one's CTC logits.

        Logits are [frames, tokens]; None where the model does not transcribe. No answer to one is a BadAudioError.
        """
        outputs = self._outputs([self._signals(wav) for wav in wavs])
        posteriors = self._posteriors(outputs)
        if not posteriors.isfinite().all():
            raise BadAudioError(NOT_FINITE_OUTPUT)
        if self.decode is None:
            return posteriors.numpy(), None
        logits, frames = outputs["asr"].float().cpu(), outputs["frames"].tolist()
        return posteriors.numpy(), [of_one[:n] for of_one, n in zip(logits, frames, strict=True)]

    def emotion_of(self, posterior: torch.Tensor | np.ndarray, speech: float | None = None) -> str | None:
        """Return the emotion that a posterior [classes] speaks for; None: too little of it, or of `speech`."""
        if not self.classes or not self.is_speech(speech):
            return None
        likeliest = int(posterior.argmax())
        return self.classes[likeliest] if float(posterior[likeliest]) >= self.threshold else None

    def is_speech(self, share: float | None) -> bool:
        """Tell whether so much is enough; what was not looked for is."""
        return share is None or self.min_speech is None or share >= self.min_speech

    def _timeline(self, path: str | os.PathLike, plan: WindowPlan, batch_size: int, progress: bool) -> Timeline:
        try:
            seconds = duration_of(path)
            self._check_least(seconds)
            return follow(self, path, seconds, plan, batch_size, progress)
        except Exception as error:
            return Timeline(os.fspath(path), error=_words(error))

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
            self._check_length(claimed_seconds(path))  # known before a recording of hours is in memory
            return self._item(load_audio(path), os.fspath(path))
        except Exception as error:
            return _Item(os.fspath(path), error=_words(error))

    def _item(self, wav: torch.Tensor, path: str | None = None) -> "_Item":
        try:
            signals = self._signals(wav)
            if wav.min() == wav.max():  # a window of a recording may well be silent
                raise BadAudioError(SILENT)
            return _Item(path, signals, len(wav) / SAMPLE_RATE, speech_share(wav) if self.speech_by else None)
        except BadAudioError as defect:
            return _Item(path, error=defect.words)

    @torch.inference_mode()
    def _signals(self, wav: torch.Tensor) -> dict[str, torch.Tensor]:
        self._check_length(len(wav) / SAMPLE_RATE)
        if not wav.isfinite().all():
            raise BadAudioError("NaN or infinite samples (expected finite ones)")
        return signals_of(self.model, wav)

    def _check_length(self, seconds: float) -> None:
        self._check_least(seconds)
        if seconds > self.max_seconds:
            most = f"expected at most max_seconds, {self.max_seconds:g} s"
        elif self.longest and seconds * SAMPLE_RATE > self.longest:
            most = f"the model's Whisper encodes at most {self.longest / SAMPLE_RATE:g} s"
        else:
            return
        anyway = "--window takes recordings of any length, as does EmotionRecognizer.timeline"
        raise BadAudioError(f"too long: {seconds:.1f} s ({most}; {anyway})")

    def _check_least(self, seconds: float) -> None:
        least = self.model.min_samples / SAMPLE_RATE
        if seconds < least:
            expected = f"expected at least {1000 * least:.1f} ms, which make a frame"
            raise BadAudioError(f"too short: {1000 * seconds:.1f} ms ({expected})")

    def _classify(self, items: list["_Item"], batch_size: int, embedding: bool) -> list[Recognition]:
        found = [Recognition(item.path, error=item.error) for item in items]
        seconds = [item.seconds for item in items]
        batches = list(_batches(seconds, batch_size, self.max_seconds, self.max_padding))
        for batch in batches:
            try:
                results = list(self._recognise([items[k] for k in batch], embedding))
            except (RuntimeError, MemoryError) as error:  # most often no memory: for one alone there may be enough
                if len(batch) > 1:
                    batches += [[k] for k in batch]
                    continue
                results = [Recognition(items[batch[0]].path, error=_words(error))]
            for k, result in zip(batch, results, strict=True):
                found[k] = result
        return found

    def _recognise(self, items: list["_Item"], embedding: bool) -> Iterator[Recognition]:
        outputs, nothing = self._outputs([item.signals for item in items]), [None] * len(items)
        texts = self.decode(outputs["asr"], outputs["frames"]) if self.decode else nothing
        vectors = outputs["embedding"].float().cpu() if embedding else nothing
        found = zip(items, self._posteriors(outputs), texts, self._ratings(outputs), vectors, strict=True)
        for item, posterior, text, ratings, vector in found:
            if posterior.isfinite().all() and all(map(math.isfinite, ratings.values())):
                posteriors = dict(zip(self.classes, posterior.tolist(), strict=True))
                emotion = self.emotion_of(posterior, item.speech)
                yield Recognition(item.path, emotion, posteriors, text, ratings, vector, item.speech)
            else:
                yield Recognition(item.path, error=NOT_FINITE_OUTPUT)

    @torch.inference_mode()
    def _outputs(self, signals: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        inputs = padded(signals, self.device)
        with self.autocast:
            return self.model(**inputs)

    def _posteriors(self, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.classes:  # dimensions alone
            return torch.empty(_size(outputs), 0)
        return (outputs["emotion"].float() / self.temperature).softmax(-1).cpu()  # [batch, classes]

    def _ratings(self, outputs: dict[str, torch.Tensor]) -> list[dict[str, float]]:
        columns = {name: outputs[name].tolist() for name in DIMENSIONS if name in outputs}
        return [{name: of[k] for name, of in columns.items()} for k in range(_size(outputs))]


def _size(outputs: dict[str, torch.Tensor]) -> int:
    """How many utterances a batch has: a graph gives no more than its heads' outputs."""
    return len(next(iter(outputs.values())))


@dataclass(frozen=True)
class _Item:
    """A recording as the model reads it, or its error."""

    path: str | None = None
    signals: dict[str, torch.Tensor] = field(default_factory=dict)
    seconds: float = 0.0  # 0: nothing to recognise
    speech: float | None = None
    error: str | None = None


def _batches(
    seconds: Sequence[float], batch_size: int, max_seconds: float, max_padding: float = float("inf")
) -> Iterator[list[int]]:
    """Indices of recordings of similar lengths, the longest first; those of no length are left out.

    A batch lasts no more than `max_seconds` with its padding, and none of it has more than `max_padding` seconds.

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


def _words(error: Exception) -> str:
    """What a recording's result says of an error; whatever it is, the other recordings do not suffer from it."""
    return error.words if isinstance(error, BadAudioError) else f"{type(error).__name__}: {error}"


def _sound(results: Iterable[Recognition | Timeline]) -> Recognition | Timeline:
    """The only result, which has no error."""
    (found,) = results
    if found.error is not None:
        raise UserError(f"{found.path}: {found.error}")
    return found


def _as_tensor(name: str, values) -> torch.Tensor:
    if not isinstance(values, torch.Tensor | np.ndarray):
        raise UserError(f"{name}: expected a tensor or a NumPy array, found {type(values).__name__}")
    return torch.as_tensor(values)


def _check_paths(paths) -> None:
    if isinstance(paths, str | bytes | os.PathLike | np.ndarray | torch.Tensor):
        one = "classify_file or timeline take one path, classify_batch takes waveforms"
        raise UserError(f"paths: expected several paths, such as a list, found {type(paths).__name__} ({one})")


def _check_batch_size(batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"batch_size: expected a whole number >= 1, found {batch_size!r}")


def _run_options(run_opts: Mapping[str, str]) -> tuple[str, TorchAutocast, torch.dtype | None]:
    """Device, autocast and its type (None: none)."""
    if unknown := [f"{o}{nearest(o, RUN_OPTS)}" for o in run_opts if o not in RUN_OPTS]:
        raise UserError(f"run_opts: unknown {', '.join(unknown)}; known: {', '.join(RUN_OPTS)}")
    options = {**RUN_OPTS, **run_opts}
    device = checked_device(options["device"])
    try:
        dtype = AMPConfig.from_name(options["precision"]).dtype
    except ValueError as error:
        raise UserError(f"run_opts: {error}") from error
    autocast = TorchAutocast(device_type=torch.device(device).type, dtype=dtype)
    return device, autocast, None if dtype == torch.float32 else dtype


def open_recognizer(model: str | os.PathLike, trust_run: bool = False, **options) -> EmotionRecognizer:
    """Open a run's folder, a package's folder, or ``user/model`` on the hub, with the options of either.

    A folder with a config.json is a package, of which nothing is executed; any other folder is a run, whose YAML is,
    with `trust_run` or below ``results/``: not the folder decides.
    """
    if os.path.lexists(Path(model) / CONFIG) or is_hub_name(os.fspath(model)):
        return EmotionRecognizer.from_package(model, **options)
    return EmotionRecognizer.from_run(model, trust_run=trust_run, **options)
