"""What every recipe's Brain inherits: optimiser steps of N utterances, statistics, predictions, checkpoints, logs.

The training loop, mixed precision and run options stay SpeechBrain's. Where SpeechBrain 1.1 has a trap, the method
that works around it says so.
"""

import itertools
import json
import logging
import statistics
import sys
import time

import pandas as pd
import speechbrain as sb
import torch
from speechbrain import Stage
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.distributed import if_main_process, main_process_only, run_on_main
from torch.nn.modules.batchnorm import _BatchNorm

from speechbrain_ser.data.batches import Batch
from speechbrain_ser.data.labels import UNKNOWN
from speechbrain_ser.errors import UserError
from speechbrain_ser.evaluation.figures import plot_reconstructions, save_figure
from speechbrain_ser.evaluation.groups import GROUPED
from speechbrain_ser.evaluation.metrics import CCC, RECOGNITION, label_accuracy, metrics, metrics_by_text
from speechbrain_ser.files import write_csv
from speechbrain_ser.models.checkpoints import AFTER, BEST, STEP, find_epoch, load_parameters, newest_whole
from speechbrain_ser.models.heads import Decoder
from speechbrain_ser.nnet.augment import WaveformAugmentation
from speechbrain_ser.nnet.losses import cross_entropy, mean_spectrum_mse, reconstruction_loss, vote_cross_entropy
from speechbrain_ser.training import distributed
from speechbrain_ser.training.checkpoints import History, RandomState, Tally
from speechbrain_ser.training.results import TRACKED, evaluate_and_write, make_loggers
from speechbrain_ser.training.run import Run
from speechbrain_ser.training.signals import stop_wish

logger = logging.getLogger(__name__)

NO_CLIPPING = 1e30
N_DRAWN = 3  # reconstructions in a picture


class SERBrain(sb.Brain):
    """Base of the recipes' Brains.

    A recipe has SpeechBrain's two methods: ``compute_forward`` calls the model on :meth:`inputs`, and
    ``compute_objectives`` gives a loss value an utterance for each task to :meth:`weighted_sum`.

    Arguments
    ---------
    run : Run
        What is trained and tested on. ``run.labels`` has the classes of each label column (the YAML's ``labels_of``),
        which a batch carries as indices: ``batch.emotion``, ``batch.gender``.
    loaders : dict of str to DataLoader
        By part: ``train``, whose items are optimiser steps, and those of valid, test, seen and second that there are.
    """

    def __init__(self, run: Run, loaders: dict, **kwargs):
        super().__init__(**kwargs)
        self.model = kwargs["modules"]["model"]  # itself, whatever --compile wraps around it in self.modules
        self.run, self.loaders = run, loaders
        self.train_sampler = loaders["train"].batch_sampler  # SpeechBrain calls its set_epoch only if it is named so
        self.class_weights = None if run.class_weights is None else run.class_weights.to(self.device)
        self.dimensions = {name: self.model.heads[name] for name in run.dimensions}
        for name, head in self.dimensions.items():
            head.scale.copy_(torch.tensor(run.scale(name)))
        self.decode = Decoder(run.tokens, self.hparams.decoding, self.hparams.beam_size) if run.tokens else None
        self.log_to = make_loggers(run.folder, self.hparams.tracker) if if_main_process() else []
        # SpeechBrain clips the first parameter group only, and clips to nothing for max_grad_norm <= 0: its clipping
        # is made harmless here, and ours runs just before each optimiser step (see init_optimizers)
        self.clip_norm, self.max_grad_norm = self.max_grad_norm, NO_CLIPPING
        self.noprogressbar = self.noprogressbar or not sys.stderr.isatty()  # a file has a line an epoch
        # its patience lets NaN gradients into the weights unless they are dropped
        self.skip_nonfinite_grads = self.skip_nonfinite_grads or self.nonfinite_patience > 0
        self.measures_seen = self.hparams.loss_weights.get("speaker", 0) > 0
        self.tally, self.history, self.rows, self.logits = Tally(), History(), [], {}
        if self.checkpointer is not None:
            states = {"history": self.history, "tally": self.tally, "random": RandomState()}
            self.checkpointer.add_recoverables({**states, "epoch_counter": self.hparams.epoch_counter})

    def inputs(self, batch: Batch) -> dict:
        """Return what the model reads of a batch, by name, on the device: pairs of padded data and relative lengths."""
        batch.to(self.device)
        return {name: getattr(batch, name) for name in self.model.inputs}

    # -------------------------------------------------------------- a batch's loss and figures

    def emotion_loss(self, predictions: dict, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the emotion's cross-entropy [batch], of labels or of votes, as a loss; none where it has no weight."""
        if "emotion" not in predictions:
            return {}
        if (votes := self.run.votes) is None:
            return {"emotion": cross_entropy(predictions["emotion"], batch.emotion, self.class_weights)}
        shares = torch.tensor([votes[i] for i in batch.id], device=self.device)
        return {"emotion": vote_cross_entropy(predictions["emotion"], shares, self.class_weights)}

    def _dimension_losses(self, predictions: dict, batch: Batch) -> dict[str, torch.Tensor]:
        losses = {}
        for name, head in self.dimensions.items():
            ratings = self.run.dimensions[name].loc[batch.id].to_numpy("float32")
            losses[name] = head.loss(predictions[name], torch.from_numpy(ratings).to(self.device))
        return losses

    def weighted_sum(
        self, losses: dict[str, torch.Tensor], predictions: dict, batch: Batch, stage: Stage
    ) -> torch.Tensor:
        """Return the losses' sum by the YAML's ``loss_weights``, a mean over utterances, and keep the books of a batch.

        Arguments
        ---------
        losses : dict of str to torch.Tensor
            One value an utterance, [batch], by task; those of dimensions are added here.
        predictions : dict
            The model's outputs. The logits of a label are measured and written by the label's name.
        batch, stage
            Those of ``compute_objectives``.
        """
        losses = {**losses, **self._dimension_losses(predictions, batch)}
        total = sum(self.hparams.loss_weights[task] * loss for task, loss in losses.items())  # (batch,)
        self.utterance_losses = dict(zip(batch.id, total.detach().tolist(), strict=True))
        # speakers who are not trained on have no loss to show
        shown = [task for task in losses if stage == Stage.TRAIN or task != "speaker"]
        figures = {f"loss_{task}": losses[task] for task in shown} if len(losses) > 1 else {}
        has_votes = self.run.votes is not None and stage == Stage.TRAIN  # and so no single label
        for label in (t for t in shown if t in self.run.labels and not (t == "emotion" and has_votes)):
            name = "WA" if label == "emotion" else f"{label}_accuracy"
            true = getattr(batch, label)
            figures[name] = (predictions[label].argmax(-1) == true)[true != UNKNOWN]
        if stage != Stage.TRAIN or total.isfinite().all():  # a tolerated batch has no part in the epoch's figures
            self.tally.add(loss=total, **figures)
        if stage != Stage.TRAIN:
            self.rows.append(self.prediction_rows(predictions, batch))
            if "emotion" in predictions:  # in full, where a row's posteriors are rounded
                self.logits |= zip(batch.id, predictions["emotion"].float().tolist(), strict=True)
        return total.mean()

    def prediction_rows(self, predictions: dict, batch: Batch) -> pd.DataFrame:
        """Return the rows of predictions.csv for a batch."""
        rows = self.run.frame.loc[batch.id]
        columns = {name: rows[name] for name in ("ID", "speaker", "emotion")}
        if "emotion" in predictions:
            posterior = predictions["emotion"].float().softmax(-1).cpu()
            columns["predicted"] = [self.run.classes[k] for k in posterior.argmax(-1).tolist()]
            for k, name in enumerate(self.run.classes):
                columns[f"posterior_{name}"] = [round(p, 6) for p in posterior[:, k].tolist()]
        columns |= {"transcript": rows["transcript"], **self._labels_told(predictions, rows)}
        for name in self.dimensions:
            columns[name] = self.run.dimensions[name].loc[batch.id]
            columns[f"{name}_predicted"] = [round(r, 6) for r in predictions[name].tolist()]
        if "asr" in predictions:
            columns["hypothesis"] = self.decode(predictions["asr"], predictions["frames"])
        if "reconstruction" in predictions:
            columns["mse"] = reconstruction_loss(predictions).tolist()
        return pd.DataFrame(columns)

    def _labels_told(self, predictions: dict, rows: pd.DataFrame) -> dict:
        """True and told values of the labels beside the emotion that have a head."""
        columns = {}
        for label in (label for label in self.run.labels if label in predictions and label != "emotion"):
            told = [self.run.labels[label][k] for k in predictions[label].argmax(-1).tolist()]
            columns |= {label: rows[label], f"{label}_predicted": told}
        return columns

    def figures(self, predictions: pd.DataFrame) -> dict:
        """Return what epochs.csv says of the predictions of a part, by name."""
        found = metrics(predictions, self.run.classes)
        confusion = {"confusion": json.dumps(found["confusion"])} if "confusion" in found else {}
        return {k: found[k] for k in RECOGNITION if k in found} | confusion

    def score(self, figures: dict) -> float:
        """Return what the best epoch has the most of: WA, or, without the emotion, the dimensions' mean CCC."""
        if "WA" in figures:
            return float(figures["WA"])
        found = [figures[name] for name in CCC if figures.get(name) is not None]
        return statistics.fmean(found) if found else 0.0

    def seen_figures(self, predictions: pd.DataFrame) -> dict:
        """Return what epochs.csv says of the known speakers' held-out utterances, by name."""
        return {"speaker_accuracy": label_accuracy(predictions, "speaker")}

    def settings(self) -> dict:
        """Return what epochs.csv says of how an epoch was trained."""
        # the first group's rate: the backbone's own, where it has one, stands last
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    # -------------------------------------------------------------- optimiser steps

    def fit_batch(self, batch: list[Batch]) -> torch.Tensor:
        """Take an optimiser step: forward and backward passes over its micro-batches, each with its share of the loss.

        A process may have no utterance of a step, which it then takes with the others' gradients.
        """
        step = self.train_sampler.plan[self.step - 1]
        if [k for micro in batch for k in micro.id] != [self.run.fold.train[i] for i in step.indices]:
            raise RuntimeError("the batch is not the planned one: the loader and the sampler are out of step")
        self.on_fit_batch_start(batch, should_step=True)
        total = torch.zeros((), device=self.device)
        self.scaler.scale(total)  # it must have scaled before it steps
        for micro in batch:
            share = len(micro.id) / step.size
            self.augment(micro)
            with self.training_ctx:
                outputs = self.compute_forward(micro, Stage.TRAIN)
                loss = self.compute_objectives(outputs, micro, Stage.TRAIN) * share
            scaled = self.scaler.scale(loss)
            self.check_loss_isfinite(scaled)
            scaled.backward()
            total += loss.detach()
        self.optimizers_step()
        for head in self.dimensions.values():
            head.end_step([terms for each in distributed.gathered(head.terms) for terms in each])
        self.scheduler.step()
        self.on_fit_batch_end(batch, None, total, should_step=True)
        return total.cpu()

    def augment(self, batch: Batch) -> None:
        """Augment waveforms in place, before the forward pass and outside autocast."""
        batch.to(self.device)
        if self.hparams.augment is None:
            return
        if isinstance(self.hparams.augment, WaveformAugmentation):
            batch.sig = self.hparams.augment.of_batch(batch.sig, batch.id, self.hparams.epoch_counter.current)
            return
        wavs, lens = batch.sig
        batch.sig = self.hparams.augment(wavs, lens)
        rows = self.hparams.augment.replicate_labels(torch.arange(len(wavs))).tolist()
        for label in self.run.labels:
            setattr(batch, label, getattr(batch, label)[rows])
        batch.tokens, batch.id = ([x[k] for k in rows] for x in (batch.tokens, batch.id))

    def optimizers_step(self):
        """Step as SpeechBrain does, with the gradients of all processes."""
        distributed.sum_gradients(self.modules.parameters())
        super().optimizers_step()

    def update_average(self, loss, avg_loss):
        """Return the mean loss over the utterances of the stage so far (SpeechBrain's is over batches)."""
        return self.tally.means().get("loss", 0.0)

    def init_optimizers(self):
        """Make one optimiser, with groups for the backbone's own rate and for vectors that are not decayed."""
        self.optimizer = self.opt_class(self._parameter_groups())
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.clip_norm > 0:
            self.optimizer.register_step_pre_hook(self._clip)
        self.total_steps = steps = self.hparams.n_epochs * self.train_sampler.steps_per_epoch
        lengths = {"num_warmup_steps": round(self.hparams.warmup * steps), "num_training_steps": steps}
        self.scheduler = self.hparams.lr_schedule(self.optimizer, **lengths)
        if self.checkpointer is not None:
            self.checkpointer.add_recoverables({"optimizer": self.optimizer, "scheduler": self.scheduler})

    def _parameter_groups(self) -> list[dict]:
        groups: dict[tuple, dict] = {}
        for name, parameter in self.modules.named_parameters():
            if parameter.requires_grad:
                own_rate = ".encoder." in name and self.hparams.backbone_lr is not None
                undecayed = parameter.ndim < 2 and self.remove_vector_weight_decay
                options = {"lr": self.hparams.backbone_lr} if own_rate else {}
                options |= {"weight_decay": 0.0} if undecayed else {}
                groups.setdefault((own_rate, undecayed), {"params": [], **options})["params"].append(parameter)
        if not groups:
            raise UserError("nothing is left to train: every parameter is frozen")
        return [groups[key] for key in sorted(groups)]

    def _clip(self, optimizer, args, kwargs):
        """Clip the norm over all groups."""
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
            way_out = "Listen to them, lower lr, or set nonfinite_patience to skip some batches an epoch"
            raise UserError(f"{message}\n  {way_out}")
        logger.warning(f"{message}; {self.nonfinite_count} of {self.nonfinite_patience} tolerated, no step from them")

    def check_gradients(self):
        """Drop the whole step where any gradient is not finite (SpeechBrain drops single parameters' and steps)."""
        if not all(p.grad.isfinite().all() for p in self.modules.parameters() if p.grad is not None):
            self.zero_grad(set_to_none=True)

    # -------------------------------------------------------------- epochs

    def fit(self, epoch_counter, train_set, valid_set=None, *args, **kwargs):
        """SpeechBrain's, with the loader's position in the checkpoints (it adds only loaders it made itself)."""
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("dataloader-TRAIN", train_set)
        super().fit(epoch_counter, train_set, valid_set, *args, **kwargs)

    def on_fit_start(self):
        """Resume from the newest checkpoint, and say so."""
        if hasattr(self.model, "measure"):  # what the training part is like, before a checkpoint replaces it
            dataset = self.loaders["train"].dataset
            self.model.measure(dataset[k] for k in range(len(dataset)))
        super().on_fit_start()
        self._stretch_schedule()
        self._tell_counter(self.history.rows)
        done = self.hparams.epoch_counter.current
        if done or self.step:
            logger.info(f"resumed after epoch {done}" + (f", within the next at step {self.step}" if self.step else ""))

    def _stretch_schedule(self) -> None:
        """More epochs lengthen the schedule: the rates that a checkpoint holds are the shorter one's (0 at its end)."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            done, factors = self.scheduler.last_epoch, self.scheduler.lr_lambdas
            for group, base, factor in zip(self.optimizer.param_groups, self.scheduler.base_lrs, factors, strict=True):
                group["lr"] = base * factor(done)

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
        if names := [n for n, m in self.modules.named_modules() if isinstance(m, _BatchNorm) and m.training]:
            way_out = "start one process, which has it, or freeze them"
            raise UserError(f"{', '.join(names)} normalise over a batch: {way_out}")

    def on_stage_start(self, stage, epoch=None):
        """Empty books; a training epoch resumed in its middle keeps its own."""
        if stage != Stage.TRAIN or self.step == 0:
            self.tally.reset()
        if stage == Stage.TRAIN:
            self.saved_at = time.monotonic()
        self.rows, self.logits = [], {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Collect the stage's figures; the last stage of an epoch closes it."""
        self._join()
        if stage == Stage.TRAIN:
            self.row = {"epoch": epoch, **self.settings(), **self._figures("train")}
        if stage == Stage.VALID:
            self.row |= self._figures("valid")
        if stage == Stage.VALID or (stage == Stage.TRAIN and not self.run.fold.valid):
            self._close_epoch(epoch)

    def _join(self) -> None:
        """Sums and rows of all processes, in each of them: all find the same figures, and the same best epoch."""
        self.tally.join()
        self.rows = [row for rows in distributed.gathered(self.rows) for row in rows]
        self.logits = {k: v for logits in distributed.gathered(self.logits) for k, v in logits.items()}

    def predictions(self) -> pd.DataFrame:
        """The predictions of the stage that just ended, sorted by ID."""
        return pd.concat(self.rows).sort_values("ID", ignore_index=True)

    def _figures(self, part: str) -> dict:
        figures = {f"{part}_{k}": v for k, v in self.tally.means().items()}
        if self.rows:
            figures |= {f"{part}_{name}": value for name, value in self.figures(self.predictions()).items()}
        return figures

    def _close_epoch(self, epoch: int) -> None:
        # without a validation part we are still in the training stage, whose end SpeechBrain notes only afterwards:
        # a run resumed from this epoch's checkpoint must not start the next one in its middle
        self.step, self.avg_train_loss = 0, 0.0
        if self.hparams.test_every_epoch:
            self._test("test")
            self.row |= self._figures("test")
        if self.measures_seen and self.run.fold.seen:
            self._test("seen")
            self.row |= {f"seen_{name}": value for name, value in self.seen_figures(self.predictions()).items()}
        self.history.rows.append(self.row)
        parts = ["valid"] * bool(self.run.fold.valid) + ["test"] * bool(self.hparams.test_every_epoch)
        scores = {f"{part}_score": self._score_of(part, self.row) for part in parts}
        self._tell_counter([self.row])
        self._log_epoch()
        self.checkpointer.save_and_keep_only(
            meta={"epoch": epoch, **scores, BEST: {f"{part}_score": self._best_score(part) for part in parts}},
            num_to_keep=2,  # and the one before, should the newest be damaged
            max_keys=list(scores),
        )
        if self._is_end_wished():
            stop_wish.heed()

    def _tell_counter(self, rows: list[dict]) -> None:
        """Tell what stops early of epochs: SpeechBrain's, having no hooks of its own, keeps their number alone."""
        counter, done = self.hparams.epoch_counter, self.hparams.epoch_counter.current
        for row in rows if self.run.fold.valid else ():
            # as a negative error: SpeechBrain's stopper takes a tie of positive scores for an improvement
            counter.current = row["epoch"]
            counter.update_metric(self.score(self._of_part("valid", row)) - 1.0)
        counter.current = done

    def _score_of(self, part: str, row: dict) -> float:
        """What checkpoints are compared by: an earlier epoch wins a tie; a plain float, as their meta may hold."""
        return self.score(self._of_part(part, row)) - 1e-9 * row["epoch"]

    def _best_score(self, part: str) -> float:
        """Of the epochs since this part was last left out: their best checkpoint is still kept."""
        rows = itertools.takewhile(lambda row: f"{part}_loss" in row, reversed(self.history.rows))
        return max(self._score_of(part, row) for row in rows)

    def _test(self, part: str) -> None:
        """A part with the current weights; nothing of training notices."""
        step, self.step = self.step, 0
        self.on_stage_start(Stage.TEST)
        self.modules.eval()
        for batch in self.loaders[part]:
            self.step += 1
            self.evaluate_batch(batch, Stage.TEST)
            if self.debug and self.step == self.debug_batches:
                break
        self.step = step
        self._join()

    @main_process_only
    def _log_epoch(self) -> None:
        write_csv(pd.DataFrame(self.history.rows), self.run.folder / "epochs.csv")
        meta = {k: v for k, v in self.row.items() if k in ("epoch", *self.settings()) or k.startswith("seen_")}
        numbers = {k: v for k, v in self.row.items() if isinstance(v, int | float)}
        for log in self.log_to:
            log(meta, {part: self._of_part(part, numbers) or None for part in TRACKED})

    def _of_part(self, part: str, row: dict) -> dict:
        return {k.removeprefix(f"{part}_"): v for k, v in row.items() if k.startswith(f"{part}_")}

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Whether it is time (by a clock that nobody sets), or any process was asked to end."""
        if self.checkpointer is None:
            return False
        wished = self._is_end_wished()  # asked in every process, whatever the clock says
        last_ckpt_time = time.time() - (time.monotonic() - self.saved_at)
        return super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt) or wished

    def _is_end_wished(self) -> bool:
        """Whether any process was asked to end: all of them end after the same step."""
        numbers = [number for number in distributed.gathered(stop_wish.number) if number is not None]
        if numbers:  # else a signal may have come meanwhile, of which the others know after the next step
            stop_wish.number = numbers[0]
        return bool(numbers)

    def _save_intra_epoch_ckpt(self):
        """As SpeechBrain's, with the place in training; where someone wishes that we end, we do."""
        self.checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True, AFTER: self.hparams.epoch_counter.current - 1, STEP: self.step},
            end_of_epoch=False,
            num_to_keep=1,
            ckpt_predicate=lambda checkpoint: INTRA_EPOCH_CKPT_FLAG in checkpoint.meta,
            verbosity=logging.DEBUG,
        )
        self.saved_at = time.monotonic()
        stop_wish.heed()

    # -------------------------------------------------------------- test

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the model, and only it, of the chosen checkpoint; SpeechBrain would test untrained weights silently."""
        checkpoint = find_epoch(self.checkpointer, max_key=max_key, min_key=min_key)
        if checkpoint is None:
            wanted = f"checkpoint with {max_key}" if max_key else "checkpoint"
            folder = self.checkpointer.checkpoints_dir
            raise UserError(f"{folder} holds no {wanted}: refusing to test untrained weights")
        load_parameters(self.model, checkpoint)
        self.tested_epoch = checkpoint.meta["epoch"]

    @property
    def tested_parts(self) -> list[str]:
        """The parts that are tested after training, where the fold has them."""
        return ["test", "second", *(["seen"] if self.measures_seen else [])]

    def test(self) -> None:
        """Test every selection this training gives, and write the run's results."""
        self._refuse_half_trained()
        self._restore_epochs()
        evaluate_and_write(self)
        self.checkpointer.keep_for_tests()

    def _refuse_half_trained(self) -> None:
        """With --test_only: its results would be called those of all epochs, and its training ended."""
        newest = find_epoch(self.checkpointer) if self.test_only else None
        if newest is None or newest.meta["epoch"] >= self.hparams.n_epochs:
            return
        self.history.load(newest.paramfiles["history"], end_of_epoch=True)
        self._tell_counter(self.history.rows)
        if not self.hparams.epoch_counter.should_stop and self.optimizer_step_limit is None:
            done = f"{self.run.folder} has stopped after epoch {newest.meta['epoch']} of {self.hparams.n_epochs}"
            raise UserError(f"{done}: without --test_only the same command trains on, and tests")

    @main_process_only
    def _restore_epochs(self) -> None:
        """Write epochs.csv anew where someone has deleted it."""
        path = self.run.folder / "epochs.csv"
        if not path.is_file() and (newest := newest_whole(self.checkpointer.checkpoints_dir)):
            self.history.load(newest.paramfiles["history"], end_of_epoch=True)
            write_csv(pd.DataFrame(self.history.rows), path)

    def table(self, part: str) -> pd.DataFrame:
        """Return the predictions of a part that was just tested, as they are written."""
        predictions = self.predictions()
        if part == "seen":
            return predictions[["ID", "speaker", "speaker_predicted"]]
        # a speaker of a test part is recognised only where a leaky protocol trains on him: see `seen`
        predictions = predictions.drop(columns="speaker_predicted", errors="ignore")
        groups = [name for name in GROUPED if name in self.run.frame and name not in predictions]
        told = self.run.frame.loc[predictions["ID"], groups].to_dict("list")
        return predictions.assign(text_heard=predictions["ID"].map(self.run.heard[part]), **told)

    def report(self, tables: dict[str, pd.DataFrame]) -> dict:
        """Return what metrics.json says of the tested parts of a selection."""
        test = tables["test"]
        found = metrics_by_text(test, self.run.classes)
        if "second" in tables:  # corpus
            found["second"] = metrics(tables["second"], self.run.classes)
            of = tables["second"]["ID"].map(self.run.frame["corpus"])
            if len(self.run.config.seconds) > 1:
                found["seconds"] = {c: metrics(rows, self.run.classes) for c, rows in tables["second"].groupby(of)}
        if self.measures_seen:
            found["seen_speaker_accuracy"] = label_accuracy(tables["seen"], "speaker") if "seen" in tables else "none"
        told = [label for label in self.run.labels if f"{label}_predicted" in test]
        return found | {f"{label}_accuracy": label_accuracy(test, label) for label in told}

    def facts(self) -> dict:
        """Return what metrics.json says of the trained model beside its figures."""
        return {}


class PretrainingBrain(SERBrain):
    """Base of the Brains of pre-training (``kind: pretraining``), judged by the errors of their reconstructions."""

    tested_parts = ("test", "seen")

    def __init__(self, run, loaders, **kwargs):
        super().__init__(run, loaders, **kwargs)
        self.has_speaker_task = self.measures_seen
        self.measures_seen = True  # known speakers: there the reconstruction and the timbre mean most
        self.drawn = dict.fromkeys((run.fold.seen or run.fold.valid or run.fold.test)[:N_DRAWN])

    def prediction_rows(self, predictions, batch):
        """Return errors of the reconstruction, and of the best spectrum that does not move; the speaker recognised."""
        for k, utterance in enumerate(batch.id):
            if utterance in self.drawn:
                frames = predictions["mel_frames"][k]
                self.drawn[utterance] = [predictions[p][k, :frames].cpu() for p in ("target", "reconstruction")]
        rows = self.run.frame.loc[batch.id]
        columns = {"ID": rows["ID"], "speaker": rows["speaker"], "mse": reconstruction_loss(predictions).tolist()}
        columns["mse_of_mean"] = mean_spectrum_mse(predictions["target"], predictions["mel_frames"]).tolist()
        return pd.DataFrame({**columns, **self._labels_told(predictions, rows)})

    def figures(self, predictions):
        return {"MSE": float(predictions["mse"].mean())}

    def score(self, figures):
        return -figures["MSE"]

    def seen_figures(self, predictions):
        return self.figures(predictions) | (super().seen_figures(predictions) if self.has_speaker_task else {})

    def table(self, part):
        return self.predictions()

    def report(self, tables):
        found = {}
        for part, rows in tables.items():
            of_mean = float(rows["mse_of_mean"].mean())
            found[part] = {"n": len(rows), **self.figures(rows), "MSE_of_mean_spectrum": of_mean}
            if part == "seen" and self.has_speaker_task:
                found[part]["speaker_accuracy"] = label_accuracy(rows, "speaker")
        return found

    def _log_epoch(self):
        super()._log_epoch()
        epoch = self.row["epoch"]
        if epoch % self.hparams.draw_every == 0 or epoch == self.hparams.n_epochs:
            pairs = [pair for drawn in distributed.gathered(self.drawn) for pair in drawn.items()]
            found = {utterance: pair for utterance, pair in pairs if pair is not None}
            if found:  # not those of a test part, where nobody else could be drawn
                run_on_main(self._draw, [epoch, {u: found[u] for u in self.drawn if u in found}])

    def _draw(self, epoch: int, pairs: dict) -> None:
        folder = self.run.folder / "reconstructions"
        folder.mkdir(exist_ok=True)
        save_figure(plot_reconstructions(pairs, f"epoch {epoch}"), folder / f"epoch_{epoch:04d}.png")
