"""From a checked run to its folder, data loaders and Brain."""

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, infer_device

from speechbrain_ser.brain import RunData, check_optimizer
from speechbrain_ser.checkpoints import WholeCheckpointer
from speechbrain_ser.dataio import (
    SAMPLE_RATE,
    AudioCache,
    StepSampler,
    balanced_weights,
    length_sorted_batches,
    make_dataset,
    make_loader,
    samples_of,
)
from speechbrain_ser.distributed import rank, world_size
from speechbrain_ser.errors import UserError
from speechbrain_ser.files import write_json, write_text
from speechbrain_ser.nnet.losses import frames_needed
from speechbrain_ser.preparation import Setup
from speechbrain_ser.processing.sources import feature_source
from speechbrain_ser.protocols import PARTS, text_heard, who_validates
from speechbrain_ser.tokens import build_tokens, save_tokens

logger = logging.getLogger(__name__)


def build(setup: Setup):
    """The run's folder, data loaders and Brain.

    Arguments
    ---------
    setup : Setup
        From :func:`prepare`.

    Returns
    -------
    tuple
        The built YAML (dict), the Brain, and the loaders by part.
    """
    is_new = not (setup.folder / "configuration.json").exists()
    try:
        return _build(setup)
    except Exception:
        if is_new and if_main_process():  # else a corrected line would meet a folder of another configuration
            shutil.rmtree(setup.folder, ignore_errors=True)
        raise


def _build(setup: Setup):
    config = setup.config
    tokens = _tokens(config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
    config.computed = _computed(setup, tokens)
    if if_main_process():
        _fill_folder(setup, tokens)
    _log_split(setup)

    hparams, data, loaders, sampler = _parts(setup, tokens)
    checkpointer = WholeCheckpointer(setup.folder / "save", {"model": hparams["model"]})
    brain = hparams["brain_class"](
        data=data,
        sampler=sampler,
        loaders=loaders,
        modules=hparams["modules"],
        opt_class=hparams.get("opt_class"),
        hparams=hparams,
        run_opts=config.run_opts,
        checkpointer=checkpointer,
    )
    return hparams, brain, loaders


def _fill_folder(setup: Setup, tokens) -> None:
    setup.folder.mkdir(parents=True, exist_ok=True)
    write_json(setup.science, setup.folder / "configuration.json")  # first: by it a killed run's folder is known
    sb.create_experiment_directory(str(setup.folder))
    write_text(setup.config.resolved(), setup.folder / "hyperparams.yaml")
    save = setup.folder / "save"
    save.mkdir(exist_ok=True)
    write_json(setup.classes, save / "classes.json")
    write_json(setup.speakers, save / "speakers.json")
    if tokens:
        save_tokens(tokens, save / "tokens.json")


def _parts(setup: Setup, tokens):
    """What the YAML declares and the data, which judge each other."""
    hparams = setup.config.build()
    frame = setup.frame.set_index("ID")
    weights = _class_weights(hparams["class_weights"], setup)
    data = RunData(frame, setup.fold, setup.classes, weights, tokens, setup.speakers)
    _refuse_too_short(data, hparams["model"])
    _refuse_too_long(data, hparams["model"])
    _warn_ctc(data, hparams["model"])
    loaders, sampler = _loaders(hparams, data, torch.device(setup.config.run_opts.device or infer_device()).type)
    return hparams, data, loaders, sampler


def rehearse(setup: Setup) -> None:
    """Build everything that a run needs and forget it: what a constructor refuses is known before many runs start.

    Arguments
    ---------
    setup : Setup
        From :func:`prepare`; nothing is written into its folder.

    Raises
    ------
    UserError
        As training would.
    """
    config = replace(setup.config)  # what is computed here is not the run's
    with tempfile.TemporaryDirectory() as folder:
        setup = replace(setup, config=config, folder=Path(folder))
        tokens = _tokens(config.plain, setup.frame.set_index("ID").loc[list(setup.fold.train), "transcript"])
        config.computed = _computed(setup, tokens)
        hparams, *_ = _parts(setup, tokens)
        check_optimizer(hparams, hparams.get("opt_class"))


def _computed(setup: Setup, tokens) -> dict:
    sizes = {
        "n_emotions": len(setup.classes),
        "n_tokens": len(tokens) if tokens else None,
        "n_speakers": len(setup.speakers),
    }
    sizes = {key: size for key, size in sizes.items() if key in setup.config.tree}
    return {**sizes, "output_folder": str(setup.folder), "fold": setup.fold.name}


def _tokens(plain: dict, transcripts: pd.Series):
    if not plain["loss_weights"].get("asr"):
        return None
    tokens = build_tokens(plain["tokens"], transcripts, plain["n_pieces"])
    if deleted := tokens.deleted(transcripts):
        listed = ", ".join(f"{c} ({n})" for c, n in deleted.most_common())
        logger.warning(
            f"characters outside `tokens: {plain['tokens']}` are deleted from training transcripts: {listed}"
        )
    return tokens


def _class_weights(wanted, setup: Setup) -> torch.Tensor | None:
    """Weights of the emotion loss, mean 1 over the training utterances, so that a step's size does not matter."""
    if not wanted:
        return None
    emotion = setup.frame.set_index("ID").loc[list(setup.fold.train), "emotion"]
    counts = emotion.value_counts().reindex(setup.classes, fill_value=0)
    if wanted == "balanced":
        weights = 1.0 / counts.clip(lower=1)
    elif isinstance(wanted, dict) and set(wanted) == set(setup.classes):
        weights = pd.to_numeric(pd.Series(wanted), errors="coerce").reindex(setup.classes)
        if not (weights > 0).all() or not (weights < float("inf")).all():
            raise UserError(f"class_weights: expected numbers > 0, found {wanted}")
    else:
        raise UserError(f"class_weights: expected balanced or a weight for each of {setup.classes}, found {wanted}")
    return torch.tensor((weights / (weights * counts).sum() * counts.sum()).to_numpy(), dtype=torch.float32)


def _micro_batch_size(hparams: dict, device: str) -> int:
    """Utterances at a time: what the YAML says, else what is fastest on a device."""
    if hparams["micro_batch_size"] is not None:
        return hparams["micro_batch_size"]
    # a CPU gains nothing from more at a time, and loses by their padding and by activations that leave its caches
    # (benchmarks/README.md); other devices want all they can get
    return 1 if device == "cpu" else hparams["batch_size"]


def _loaders(hparams: dict, data: RunData, device: str):
    frames = {part: data.frame.loc[list(getattr(data.fold, part))].reset_index() for part in PARTS}
    train = frames["train"]
    sampler = StepSampler(
        train["duration"],
        hparams["batch_size"],
        _micro_batch_size(hparams, device),
        hparams["seed"],
        balanced_weights(train, hparams.get("balance"), hparams["second_corpus"], hparams.get("second_share")),
        hparams.get("epoch_steps", 0),
        hparams.get("bucket_steps", 1),
        rank(),
        world_size(),
    )
    if hparams.get("opt_class"):
        logger.info(
            f"{sampler.steps_per_epoch} steps of {hparams['batch_size']} utterances an epoch, "
            f"micro-batches of {sampler.micro_batch_size}, padding {sampler.padding_share():.0%}"
            + (f", shared by {world_size()} processes" if world_size() > 1 else "")
        )
    inputs = _inputs(hparams, data.frame)
    encode = data.tokens.encode if data.tokens else None
    loaders = {"valid": None}
    for part, frame in frames.items():
        if len(frame):
            batches = sampler
            if part != "train":  # the batches are those of one process: so are the predictions, each in one of them
                batches = length_sorted_batches(frame["duration"], hparams["eval_batch_size"])[rank() :: world_size()]
            dataset = make_dataset(frame, inputs, data.classes, encode, data.speakers)
            loaders[part] = make_loader(dataset, batches, hparams["num_workers"], pin_memory=device == "cuda")
    return loaders, sampler


def _inputs(hparams: dict, frame: pd.DataFrame) -> dict:
    """What the model reads of a recording, by name: waveforms, or features that are computed once and kept."""
    folder, inputs = Path(hparams["cache_folder"]), {}
    for name, features in hparams["model"].inputs.items():
        if features is None:
            inputs[name] = AudioCache(folder / "audio")
        elif hparams.get("augment") is not None:
            switches = ("cache_features", "cache_front_end", "cache_embeddings")
            lines = [f"--{line}=False" for line in switches if hparams.get(line)]
            way_out = f"give {lines[0]}" if lines else "leave augment: null"
            raise UserError(f"augment changes waveforms, but {name} are computed once: {way_out}")
        else:
            inputs[name] = feature_source(features, folder / "features", frame)
        inputs[name].fill(frame["wav"].tolist(), progress=if_main_process())
    return inputs


def _log_split(setup: Setup) -> None:
    fold, plain = setup.fold, setup.config.plain
    sizes = ", ".join(f"{p} {len(getattr(fold, p))}" for p in PARTS if getattr(fold, p))
    logger.info(f"{plain['corpus']}, protocol {plain['protocol']}, fold {fold.name}: {sizes}")
    logger.info(f"validation: {who_validates(setup.frame, fold, plain['protocol'])}")
    if leak := setup.leak:
        logger.warning(f"LEAKY PROTOCOL: {leak}")
    heard = text_heard(setup.frame, fold)
    logger.info(f"{heard.mean():.0%} of the test utterances say a text that is also said in training")


def _refuse_too_short(data: RunData, model) -> None:
    """An utterance without a single frame would stop an epoch in its middle."""
    samples = zip(data.frame.index, samples_of(data.frame["duration"]).tolist(), strict=True)
    if short := [f"{utterance} ({n / 16:.0f} ms)" for utterance, n in samples if n < model.min_samples]:
        raise UserError(
            f"{len(short)} utterances are shorter than the {model.min_samples / 16:.0f} ms the model needs for a "
            f"frame: {', '.join(short[:20])}{' …' if len(short) > 20 else ''}"
        )


def _refuse_too_long(data: RunData, model) -> None:
    """What an encoder has no positions for would stop an epoch in its middle as well."""
    if (most := getattr(getattr(model, "encoder", None), "max_samples", None)) is None:
        return
    durations = data.frame["duration"]
    if long := [f"{k} ({n:.1f} s)" for k, n in durations.items() if n * SAMPLE_RATE > most]:
        raise UserError(
            f"{len(long)} utterances are longer than the {most / SAMPLE_RATE:g} s that Whisper encodes: "
            f"{', '.join(long[:20])}{' …' if len(long) > 20 else ''} (--windows=True encodes them in pieces)"
        )


def _warn_ctc(data: RunData, model) -> None:
    """CTC cannot spell more tokens than there are frames: such utterances teach only the other tasks."""
    if not data.tokens:
        return
    train = data.frame.loc[list(data.fold.train)]
    frames = model.frame_counts(samples_of(train["duration"]))
    needed = [frames_needed(data.tokens.encode(t)) for t in train["transcript"]]
    if short := [i for i, f, n in zip(train.index, frames.tolist(), needed, strict=True) if n > f]:
        logger.warning(f"{len(short)} utterances are too short for their transcript, CTC leaves them out: {short[:20]}")
