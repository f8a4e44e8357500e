"""What every recipe's Brain inherits: optimiser steps of N utterances, statistics, predictions, checkpoints, logs.

The training loop, mixed precision and run options stay SpeechBrain's. Where SpeechBrain 1.1 has a trap, the method
that works around it says so.
"""

import itertools
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, main_process_only
from torch.nn.modules.batchnorm import _BatchNorm

from speechbrain_ser.data.batches import StepSampler
from speechbrain_ser.data.protocols import Fold
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.metrics import metrics, speaker_accuracy
from speechbrain_ser.files import write_csv
from speechbrain_ser.models.checkpoints import BEST, find_epoch, load_parameters
from speechbrain_ser.models.decoding import Decoder
from speechbrain_ser.training import distributed
from speechbrain_ser.training.checkpoints import History, RandomState, Tally
from speechbrain_ser.training.results import make_loggers
from speechbrain_ser.training.signals import stop_wish

logger = logging.getLogger(__name__)

NO_CLIPPING = 1e30
PLAIN_METRICS = ("WA", "UA", "F1", "WER", "MSE")


@dataclass
class RunData:
    """What one run trains and is tested on.

    Arguments
    ---------
    frame : pandas.DataFrame
        The manifest's rows after label selection, by ID.
    fold : Fold
        Who is where.
    classes : list of str
        Emotion classes in the order of the logits.
    class_weights : torch.Tensor, optional
        [classes], mean 1 over the training utterances.
    tokens : CharacterTokens or SentencePieceTokens, optional
        Where there is an ASR head.
    speakers : tuple of str
        The training speakers, in the order of the speaker logits.
    """

    frame: pd.DataFrame
    fold: Fold
    classes: list[str]
    class_weights: torch.Tensor | None = None
    tokens: object | None = None
    speakers: tuple[str, ...] = ()


def check_optimizer(hparams: dict, opt_class) -> None:
    """What is wrong with the optimiser is said now; SpeechBrain makes it only when training starts.

    A system that takes no gradient steps has none.
    """
    if opt_class is None:
        return
    for key in ("lr", "backbone_lr"):
        rate = hparams.get(key)
        if rate is not None and not (isinstance(rate, (int, float)) and 0 <= rate < float("inf")):
            raise UserError(f"{key} must be a number >= 0, found {rate!r}")
    try:
        opt_class([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"opt_class: {error}") from error


class SERBrain(sb.Brain):
    """Base of the recipes' Brains.

    A recipe implements ``losses``: one value an utterance for each task, of what its model gives. What is said of an
    utterance and measured on a part (``prediction_rows``, ``figures``, ``score``) is recognition's; pre-training, which
    recognises nothing, has its own.

    Arguments
    ---------
    data : RunData
        The run's utterances.
    sampler : StepSampler
        Plans the optimiser steps.
    loaders : dict of str to DataLoader
        ``test``, evaluated after every epoch where ``test_every_epoch`` is on, and ``seen``, where there is a speaker
        task.
    **kwargs
        Those of ``speechbrain.Brain``.
    """

    def __init__(self, data: RunData, sampler: StepSampler, loaders=None, **kwargs):
        super().__init__(**kwargs)
        self.model = kwargs["modules"]["model"]  # itself, whatever --compile wraps around it in self.modules
        check_optimizer(vars(self.hparams), self.opt_class)
        self.data = data
        self.train_sampler = sampler  # SpeechBrain calls its set_epoch only if it is named so
        self.loaders = loaders or {}
        self.measures_seen = self.has_speaker_task = self.hparams.loss_weights.get("speaker", 0) > 0
        self.tokens = data.tokens
        self.class_weights = None if data.class_weights is None else data.class_weights.to(self.device)
        self.decode = Decoder(data.tokens, self.hparams.decoding, self.hparams.beam_size) if data.tokens else None
        self.log_to = make_loggers(self.hparams.output_folder, self.hparams.tracker) if if_main_process() else []
        # SpeechBrain clips the first parameter group only, and clips to nothing for max_grad_norm <= 0: its clipping
        # is made harmless here, and ours runs just before each optimiser step (see init_optimizers)
        self.clip_norm, self.max_grad_norm = self.max_grad_norm, NO_CLIPPING
        # its patience lets NaN gradients into the weights unless they are dropped
        self.skip_nonfinite_grads = self.skip_nonfinite_grads or self.nonfinite_patience > 0
        self.tally, self.history, self.rows, self.logits = Tally(), History(), [], {}
        if self.checkpointer is not None:
            states = {"history": self.history, "tally": self.tally, "random": RandomState()}
            self.checkpointer.add_recoverables({**states, "epoch_counter": self.hparams.epoch_counter})

    def inputs(self, batch) -> dict:
        """What the model reads of a batch, by name, on the device: pairs of padded data and relative lengths."""
        batch.to(self.device)
        return {name: getattr(batch, name) for name in self.model.inputs}

    def compute_forward(self, batch, stage):
        """The model's outputs by name: logits of each task that it has, and what else its losses need."""
        return self.modules.model(**self.inputs(batch))

    # -------------------------------------------------------------- losses

    def losses(self, predictions: dict, batch) -> dict[str, torch.Tensor]:
        """The recipe's: one loss value an utterance, [batch], by task."""
        raise NotImplementedError

    def compute_objectives(self, predictions, batch, stage):
        """The weighted sum of the recipe's losses."""
        return self.combine(self.losses(predictions, batch), predictions, batch, stage)

    def combine(self, losses: dict[str, torch.Tensor], predictions: dict, batch, stage) -> torch.Tensor:
        """The weighted sum of the tasks' losses, and the bookkeeping of a batch.

        Arguments
        ---------
        losses : dict of str to torch.Tensor
            One value an utterance, [batch], by task.
        predictions : dict of str to torch.Tensor
            The model's outputs.
        batch : Batch
            The utterances.
        stage : speechbrain.Stage
            Where we are.

        Returns
        -------
        torch.Tensor
            Scalar: the mean over utterances; in training scaled so that a step is the mean over its utterances,
            whatever its micro-batches.
        """
        total = sum(self.hparams.loss_weights[task] * loss for task, loss in losses.items())  # (batch,)
        parts = losses if len(losses) > 1 else {}
        self.utterance_losses = dict(zip(batch.id, total.detach().tolist(), strict=True))
        correct = predictions["emotion"].argmax(-1) == batch.emotion if "emotion" in predictions else None
        accuracy = {} if correct is None else {"WA": correct}
        if "speaker" in predictions and stage == sb.Stage.TRAIN:
            accuracy["speaker_accuracy"] = predictions["speaker"].argmax(-1) == batch.speaker
        elif "speaker" in parts:  # a speaker who is not trained on has no loss to show
            parts = {task: loss for task, loss in parts.items() if task != "speaker"}
        if stage != sb.Stage.TRAIN or total.isfinite().all():  # a tolerated batch has no part in the epoch's figures
            self.tally.add(loss=total, **{f"loss_{task}": loss for task, loss in parts.items()}, **accuracy)
        if stage != sb.Stage.TRAIN:
            self.rows.extend(self.prediction_rows(predictions, batch))
            if "emotion" in predictions:  # in full, where a row's posteriors are rounded
                self.logits |= zip(batch.id, predictions["emotion"].float().tolist(), strict=True)
            return total.mean()
        share = len(self.micro.indices) / self.micro.step_size
        return total.mean() * share * self.grad_accumulation_factor

    def prediction_rows(self, predictions: dict, batch) -> list[dict]:
        """The rows of predictions.csv for a batch."""
        posterior = predictions["emotion"].float().softmax(-1).cpu()
        said = self.decode(predictions["asr"], predictions["frames"]) if "asr" in predictions else None
        rows = []
        for k, utterance in enumerate(batch.id):
            row = dict(ID=utterance, **self.data.frame.loc[utterance, ["speaker", "emotion"]])
            row["predicted"] = self.data.classes[int(posterior[k].argmax())]
            row |= {f"posterior_{c}": round(float(p), 6) for c, p in zip(self.data.classes, posterior[k], strict=True)}
            row["transcript"] = self.data.frame.at[utterance, "transcript"]
            if "speaker" in predictions:
                row["speaker_predicted"] = self.data.speakers[int(predictions["speaker"][k].argmax())]
            rows.append(row if said is None else {**row, "hypothesis": said[k]})
        return rows

    # -------------------------------------------------------------- optimiser steps

    def fit_batch(self, batch):
        """SpeechBrain's, told when to step.

        SpeechBrain steps where ``step % grad_accumulation_factor == 0`` and throws away an epoch's last, smaller
        group. The factor is chosen for each micro-batch so that the condition holds exactly where the sampler ends
        a step; :meth:`combine` cancels the factor in the loss.
        """
        self.micro = self.train_sampler.plan[self.step - 1]
        if (list(batch.id) if batch else []) != [self.data.fold.train[i] for i in self.micro.indices]:
            raise RuntimeError("the batch is not the planned one: the loader and the sampler are out of step")
        if batch is None:
            return self._fit_nothing()
        self.grad_accumulation_factor = 1 if self.micro.ends_step else self.step + 1
        return super().fit_batch(batch)

    def _fit_nothing(self):
        """A step that leaves this process without an utterance is taken with the others' gradients."""
        loss = self.scaler.scale(torch.zeros((), device=self.device))  # a scaler must have scaled before it steps
        if self.micro.ends_step:
            self.optimizers_step()
        self.on_fit_batch_end(None, None, loss, self.micro.ends_step)
        return loss.cpu()

    def optimizers_step(self):
        """SpeechBrain's, with the gradients of all processes."""
        distributed.sum_gradients(self.modules.parameters())
        super().optimizers_step()

    def on_fit_batch_start(self, batch, should_step):
        """Waveform augmentation, before the forward pass and outside autocast."""
        batch.to(self.device)
        if self.hparams.augment is None:
            return
        wavs, lens = batch.sig
        augmented, lens = self.hparams.augment(wavs, lens)
        rows = self.hparams.augment.replicate_labels(torch.arange(len(wavs))).tolist()
        batch.sig = (augmented, lens)
        batch.emotion, batch.speaker = batch.emotion[rows], batch.speaker[rows]
        batch.tokens, batch.id = ([x[k] for k in rows] for x in (batch.tokens, batch.id))

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """The learning rate follows optimiser steps."""
        if should_step:
            self.scheduler.step()

    def update_average(self, loss, avg_loss):
        """The mean loss over the utterances of the stage so far (SpeechBrain's is over micro-batches)."""
        return self.tally.means().get("loss", 0.0)

    def init_optimizers(self):
        """One optimiser; its groups: backbone and rest where their rates differ, vectors where they are not decayed."""
        self.optimizer = self.opt_class(self._parameter_groups())
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.clip_norm > 0:
            self.optimizer.register_step_pre_hook(self._clip)
        self.total_steps = steps = self.hparams.n_epochs * self.train_sampler.steps_per_epoch
        self.scheduler = self.hparams.lr_schedule(
            self.optimizer, num_warmup_steps=round(self.hparams.warmup * steps), num_training_steps=steps
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables({"optimizer": self.optimizer, "scheduler": self.scheduler})

    def _parameter_groups(self) -> list[dict]:
        groups: dict[tuple, list] = {}
        for name, parameter in self.modules.named_parameters():
            if parameter.requires_grad:
                is_backbone = ".encoder." in name and self.hparams.backbone_lr is not None
                is_vector = parameter.ndim < 2 and self.remove_vector_weight_decay
                groups.setdefault((is_backbone, is_vector), []).append(parameter)
        if not groups:
            raise UserError("nothing is left to train: every parameter is frozen")
        rate, decay = (
            {True: {"lr": self.hparams.backbone_lr}, False: {}},
            {True: {"weight_decay": 0.0}, False: {}},
        )
        return [{"params": p, **rate[b], **decay[v]} for (b, v), p in sorted(groups.items(), key=lambda g: g[0])]

    def _clip(self, optimizer, args, kwargs):
        """One gradient norm over all groups."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)

    def check_loss_isfinite(self, loss):
        """Stop at a loss that is not finite and name its utterances; ``nonfinite_patience`` batches may pass."""
        if torch.isfinite(loss):
            return
        self.nonfinite_count += 1
        bad = {k: v for k, v in self.utterance_losses.items() if not torch.isfinite(torch.tensor(v))}
        message = f"the loss is not finite; utterances: {', '.join(f'{k} ({v})' for k, v in bad.items())}"
        if self.nonfinite_count > self.nonfinite_patience:
            raise UserError(
                f"{message}\n  Listen to them, lower lr, or set nonfinite_patience to skip some batches an epoch"
            )
        logger.warning(f"{message}; {self.nonfinite_count} of {self.nonfinite_patience} tolerated, no step from them")

    def check_gradients(self):
        """Drop the whole step where any gradient is not finite (SpeechBrain drops single parameters' and steps)."""
        found = [p for p in self.modules.parameters() if p.grad is not None]
        if not all(p.grad.isfinite().all() for p in found):
            for parameter in found:
                parameter.grad = None

    # -------------------------------------------------------------- epochs

    def fit(self, epoch_counter, train_set, valid_set=None, *args, **kwargs):
        """SpeechBrain's, with the loader's position in the checkpoints (it adds only loaders it made itself)."""
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("dataloader-TRAIN", train_set)
        super().fit(epoch_counter, train_set, valid_set, *args, **kwargs)

    def on_fit_start(self):
        """SpeechBrain's (resumes from the newest checkpoint), and says where we are."""
        super().on_fit_start()
        self._stretch_schedule()
        self._find_batch()
        done = self.hparams.epoch_counter.current
        if done or self.step:
            logger.info(
                f"resumed after epoch {done}" + (f", within the next at batch {self.step}" if self.step else "")
            )

    def _stretch_schedule(self) -> None:
        """More epochs lengthen the schedule: the rates that a checkpoint holds are the shorter one's (0 at its end)."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            done, factors = self.scheduler.last_epoch, self.scheduler.lr_lambdas
            for group, base, factor in zip(self.optimizer.param_groups, self.scheduler.base_lrs, factors, strict=True):
                group["lr"] = base * factor(done)

    def _find_batch(self) -> None:
        """Within an epoch, the first batch after the steps that are done.

        It is the checkpoint's own, unless another number of processes, or of utterances at a time, cuts the steps.
        """
        if not self.step:
            return
        epochs, loader = self.hparams.epoch_counter.current, self.checkpointer.recoverables.get("dataloader-TRAIN")
        done = self.optimizer_step - epochs * self.train_sampler.steps_per_epoch
        if loader is not None and 0 < done <= self.train_sampler.steps_per_epoch:
            self.train_sampler.set_epoch(epochs + 1)
            self.step = loader._speechbrain_recovery_skip_to = self.train_sampler.batches_of(done)

    def _wrap_distributed(self):
        """With torchrun nothing is wrapped: :func:`~speechbrain_ser.training.distributed.sum_gradients` does it all."""
        if not self.distributed_launch:
            return super()._wrap_distributed()
        distributed.same_parameters(self.modules)
        distributed.own_random_state(self.train_sampler.seed)
        self._refuse_batch_statistics()

    def _refuse_batch_statistics(self) -> None:
        if distributed.world_size() == 1:
            return
        self.modules.train()  # what is frozen stays in evaluation mode, and measures nothing
        names = [n for n, m in self.modules.named_modules() if isinstance(m, _BatchNorm) and m.training]
        if names:
            raise UserError(
                f"{', '.join(names)} normalise over a batch, which no process has whole: start one, or freeze them"
            )

    def on_stage_start(self, stage, epoch=None):
        """Empty books; a training epoch resumed in its middle keeps its own."""
        if stage != sb.Stage.TRAIN or self.step == 0:
            self.tally.reset()
        self.rows, self.logits = [], {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Collect the stage's figures; the last stage of an epoch closes it."""
        self._join()
        if stage == sb.Stage.TRAIN:
            self.row = {"epoch": epoch, **self.settings(), **self._figures("train")}
        if stage == sb.Stage.VALID:
            self.row |= self._figures("valid")
        if stage == sb.Stage.VALID or (stage == sb.Stage.TRAIN and not self.data.fold.valid):
            self._close_epoch(epoch)

    def settings(self) -> dict:
        """What epochs.csv says of how an epoch was trained."""
        # the first group's rate: the backbone's own, where it has one, stands last
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def facts(self) -> dict:
        """What metrics.json says of the trained model beside its figures."""
        return {}

    def _join(self) -> None:
        """Sums and rows of all processes, in each of them: all find the same figures, and the same best epoch."""
        self.tally.join()
        self.rows = [row for rows in distributed.gathered(self.rows) for row in rows]
        self.logits = {k: v for logits in distributed.gathered(self.logits) for k, v in logits.items()}

    def predictions(self) -> pd.DataFrame:
        """The predictions of the stage that just ended, sorted by ID."""
        return pd.DataFrame(self.rows).sort_values("ID", ignore_index=True)

    def _figures(self, part: str) -> dict:
        figures = {f"{part}_{k}": v for k, v in self.tally.means().items()}
        if self.rows:
            figures |= {f"{part}_{name}": value for name, value in self.figures(self.predictions()).items()}
        return figures

    def figures(self, predictions: pd.DataFrame) -> dict:
        """What epochs.csv says of the predictions of a part, by name."""
        found = metrics(predictions, self.data.classes)
        plain = {name: found[name] for name in PLAIN_METRICS if name in found}
        return {**plain, "confusion": json.dumps(found["confusion"])}

    def score(self, figures: dict) -> float:
        """What the best epoch has the most of."""
        return float(figures["WA"])

    def seen_figures(self, predictions: pd.DataFrame) -> dict:
        """What epochs.csv says of the known speakers' held-out utterances, by name."""
        return {"speaker_accuracy": speaker_accuracy(predictions)}

    def _close_epoch(self, epoch: int) -> None:
        # without a validation part we are still in the training stage, whose end SpeechBrain notes only afterwards:
        # a run resumed from this epoch's checkpoint must not start the next one in its middle
        self.step, self.avg_train_loss = 0, 0.0
        if self.hparams.test_every_epoch:
            self._run("test")
            self.row |= self._figures("test")
        if self.measures_seen and self.data.fold.seen:
            self._run("seen")
            self.row |= {f"seen_{name}": value for name, value in self.seen_figures(self.predictions()).items()}
        self.history.rows.append(self.row)
        measured = {"valid": bool(self.data.fold.valid), "test": bool(self.hparams.test_every_epoch)}
        parts = [part for part, is_there in measured.items() if is_there]
        scores = {f"{part}_score": self._score_of(part, self.row) for part in parts}
        if "valid" in parts:
            # as a negative error: SpeechBrain's stopper takes a tie of positive scores for an improvement
            self.hparams.epoch_counter.update_metric(self.score(self._of_part("valid", self.row)) - 1.0)
        self._log_epoch()
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, **scores, BEST: {f"{part}_score": self._best_score(part) for part in parts}},
            num_to_keep=2,  # and the one before, should the newest be damaged
            max_keys=list(scores),
        )
        if self._is_end_wished():
            stop_wish.heed()

    def _score_of(self, part: str, row: dict) -> float:
        """What checkpoints are compared by: an earlier epoch wins a tie; a plain float, as their meta may hold."""
        return self.score(self._of_part(part, row)) - 1e-9 * row["epoch"]

    def _best_score(self, part: str) -> float:
        """Of the epochs since this part was last left out: their best checkpoint is still kept."""
        rows = itertools.takewhile(lambda row: f"{part}_loss" in row, reversed(self.history.rows))
        return max(self._score_of(part, row) for row in rows)

    def _run(self, part: str) -> None:
        """A part with the current weights; nothing of training notices."""
        step, self.step = self.step, 0
        self.on_stage_start(sb.Stage.TEST)
        self.modules.eval()
        for batch in self.loaders[part]:
            self.step += 1
            self.evaluate_batch(batch, sb.Stage.TEST)
            if self.debug and self.step == self.debug_batches:
                break
        self.step = step
        self._join()

    @main_process_only
    def _log_epoch(self) -> None:
        write_csv(pd.DataFrame(self.history.rows), Path(self.hparams.output_folder) / "epochs.csv")
        meta = {k: self.row[k] for k in ("epoch", *self.settings())}
        parts = {p: self._numbers(p) for p in ("train", "valid", "test")}
        meta |= {k: v for k, v in self.row.items() if k.startswith("seen_")}
        for log in self.log_to:
            log(meta, parts)
        for part in ("valid", "test"):
            if f"{part}_confusion" in self.row:
                rows = " | ".join(" ".join(map(str, r)) for r in json.loads(self.row[f"{part}_confusion"]))
                logger.info(f"{part} confusion (rows: true {', '.join(self.data.classes)}): {rows}")

    def _of_part(self, part: str, row: dict) -> dict:
        return {k.removeprefix(f"{part}_"): v for k, v in row.items() if k.startswith(f"{part}_")}

    def _numbers(self, part: str) -> dict | None:
        return {k: v for k, v in self._of_part(part, self.row).items() if isinstance(v, (int, float))} or None

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Only after an optimiser step: gradients gathered so far are not part of a checkpoint."""
        if self.checkpointer is None or not self.micro.ends_step:
            return False
        wished = self._is_end_wished()  # in every process, whatever the clock says
        return super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt) or wished

    def _is_end_wished(self) -> bool:
        """Whether any process was asked to end: all of them end after the same step."""
        numbers = [number for number in distributed.gathered(stop_wish.number) if number is not None]
        stop_wish.number = numbers[0] if numbers else None
        return stop_wish.is_there

    def _save_intra_epoch_ckpt(self):
        """SpeechBrain's; where someone wishes that we end, we do."""
        super()._save_intra_epoch_ckpt()
        stop_wish.heed()

    # -------------------------------------------------------------- test

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the model, and only it, of the chosen checkpoint; SpeechBrain would test untrained weights silently."""
        checkpoint = find_epoch(self.checkpointer, max_key=max_key, min_key=min_key)
        if checkpoint is None:
            raise UserError(
                f"{self.checkpointer.checkpoints_dir} holds no checkpoint{f' with {max_key}' if max_key else ''}: "
                "refusing to test untrained weights"
            )
        load_parameters(self.model, checkpoint)
        self.tested_epoch = checkpoint.meta["epoch"]
