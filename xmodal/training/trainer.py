"""The trainer: one loop for every head and every objective."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from xmodal.data import PairBatch, PairDataset, RegionStore, Vocabulary, load_captions
from xmodal.data.captions import caption_image_index
from xmodal.data.word_vectors import load_word_vectors
from xmodal.encoders.gru import GRUEncoder
from xmodal.evaluation import evaluate_protocol
from xmodal.model import Matcher
from xmodal.names import build
from xmodal.objectives import OBJECTIVES
from xmodal.training import checkpoints
from xmodal.training.config import DataConfig, OptimizerConfig, TrainConfig, to_dict
from xmodal.training.sampler import ShuffledBatches
from xmodal.training.step import MatchingStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xmodal.data import Caption


class Interrupted(SystemExit):
    """Training stopped on a signal after saving its state; exits with 128 + the signal's number, as shells expect."""


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a matcher as configured; returns the validation results of the best checkpoint.

    The run folder gets `config.yaml`, `environment.json`, `log.jsonl`, `checkpoint.pt` (the last state, for
    `resume`) and `best/` (the model with the best rsum on the validation split).

    Raises:
        FileNotFoundError: for data that is not there.
        FileExistsError: if the run folder already holds a run and `resume` is not set.
        ValueError: for a configuration or data that cannot work.
        FloatingPointError: if the loss stops being finite, naming the batch; the last checkpoint stays.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    set_seed(config.seed)
    if not config.resume and (config.output / checkpoints.CHECKPOINT).exists():
        raise FileExistsError(
            f"{config.output} already holds a run; pass --resume to go on, or another --output to start a new one"
        )
    saved = checkpoints.load_checkpoint(config.output) if config.resume else None
    if saved is not None:
        _refuse_other_config(saved["config"], to_dict(config))

    data = _load_data(config.data)
    matcher = _build_matcher(config, data.train_store)
    train_set = PairDataset(data.train_store, data.train_captions, matcher.tokenizer)
    batches = ShuffledBatches(
        len(train_set), config.batch_size, config.seed, accelerator.process_index, accelerator.num_processes
    )
    step_module = MatchingStep(matcher, build("objective", OBJECTIVES, config.objective))
    optimizer = _optimizer(step_module, config.optimizer)
    scheduler = _schedule(optimizer, config, math.ceil(len(batches) / config.accumulate))
    step_module, optimizer = accelerator.prepare(step_module, optimizer)
    run = _Run(config, accelerator, step_module, optimizer, scheduler)
    if saved is not None:
        run.restore(saved)
    if accelerator.is_main_process:
        checkpoints.write_config(config.output, to_dict(config))
        run.log = checkpoints.Log(config.output, run.step)

    with _SignalFlag() as stop:
        for epoch in range(run.epoch, config.epochs):
            for batch_number, batch in _loader(run, train_set, batches, epoch):
                stepped = run.train_batch(batch, batch_number, last=batch_number == len(batches) - 1)
                run.epoch, run.batch = epoch, batch_number + 1
                if stepped and config.validate_every and run.step % config.validate_every == 0:
                    run.validate(*data.validation)
                if stepped and stop.agreed(accelerator):
                    run.save()
                    raise Interrupted(128 + stop.signal)
            run.epoch, run.batch = epoch + 1, 0
            if run.validated_at != run.step:
                run.validate(*data.validation)
    if run.log is not None:
        run.log.close()
    accelerator.end_training()
    return run.best


class _Run:
    """What changes while a run goes on, how to save it and how to restore it."""

    def __init__(self, config, accelerator, step_module, optimizer, scheduler) -> None:
        self.config: TrainConfig = config
        self.accelerator: Accelerator = accelerator
        self.step_module, self.optimizer, self.scheduler = step_module, optimizer, scheduler
        self.step = self.epoch = self.batch = 0
        self.validated_at = 0
        self.best: dict[str, Any] = {"rsum": -math.inf}
        self.log: checkpoints.Log | None = None

    @property
    def matcher(self) -> Matcher:
        return self.accelerator.unwrap_model(self.step_module).matcher

    def train_batch(self, batch: PairBatch, number: int, last: bool) -> bool:
        """One batch: forward, backward and, if enough batches have been accumulated, a step. Whether it stepped."""
        accelerator = self.accelerator
        started = time.perf_counter()
        batch = PairBatch(*(field.to(accelerator.device) for field in batch))
        self.step_module.train()
        # The end of an epoch always steps, so that no gradient waits for the next one.
        steps_now = last or (number + 1) % self.config.accumulate == 0
        with contextlib.nullcontext() if steps_now else accelerator.no_sync(self.step_module):
            with accelerator.autocast():
                terms = self.step_module(batch, self.step)
            self._check_finite(terms["total"], batch)
            accelerator.backward(terms["total"] / self.config.accumulate)
        if not steps_now:
            return False
        clip = self.config.optimizer.clip_norm
        norm = accelerator.clip_grad_norm_(self.step_module.parameters(), clip if clip > 0 else math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        if self.log is not None:
            self.log.write(
                self.step,
                epoch=self.epoch,
                **{f"loss/{name}": value.item() for name, value in terms.items()},
                gradient_norm=float(norm),
                learning_rate=self.scheduler.get_last_lr()[0],
                seconds=time.perf_counter() - started,
            )
        return True

    def _check_finite(self, loss: torch.Tensor, batch: PairBatch) -> None:
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.step}, on images {batch.image.tolist()} and captions "
                f"{batch.caption.tolist()} (positions in the training split). The last checkpoint is intact. Lower the "
                "learning rate, or look for bad features with RegionStore.validate()."
            )

    def validate(self, store: RegionStore, captions: list[str], caption_image: torch.Tensor) -> None:
        """Evaluate with the configured protocol; keep the best model; save the state."""
        self.validated_at = self.step
        if self.accelerator.is_main_process:
            self.step_module.eval()
            scores = self.matcher.score_all(store, captions)
            results = evaluate_protocol(scores, caption_image, self.config.protocol)
            if self.log is not None:
                self.log.write(self.step, epoch=self.epoch, validation=results)
            if results["rsum"] > self.best["rsum"]:
                self.best = {**results, "step": self.step, "epoch": self.epoch}
                checkpoints.save_best(self.config.output, self.matcher, self.best)
            if self.config.progress:
                tqdm.write(_summary(results, self.step, is_best=self.best["step"] == self.step))
        self.save()

    def save(self) -> None:
        """Save everything that a resumed run needs to be the same run."""
        states = checkpoints.random_states()
        if self.accelerator.is_main_process:
            checkpoints.save_checkpoint(
                self.config.output,
                {
                    "config": to_dict(self.config),
                    "environment": checkpoints.environment(),
                    "step_module": self.accelerator.unwrap_model(self.step_module).state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
                    "progress": [self.step, self.epoch, self.batch, self.validated_at],
                    "best": self.best,
                    "random_states": states,
                },
            )
        self.accelerator.wait_for_everyone()

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self.accelerator.unwrap_model(self.step_module).load_state_dict(saved["step_module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.step, self.epoch, self.batch, self.validated_at = saved["progress"]
        self.best = saved["best"]
        checkpoints.restore_random_states(saved["random_states"])


class _SignalFlag:
    """Turns SIGINT and SIGTERM into a flag that is looked at between steps; a second signal acts at once."""

    def __enter__(self) -> _SignalFlag:
        self.signal = 0
        self._previous = {number: signal.signal(number, self._raise_flag) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _raise_flag(self, number: int, _frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        tqdm.write("stopping after this step; the run can be resumed with --resume")

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process has been asked to stop: all must stop at the same step."""
        if accelerator.num_processes > 1:
            flags = accelerator.gather(torch.tensor([self.signal], device=accelerator.device))
            self.signal = int(flags.max())
        return self.signal != 0


class _Data(NamedTuple):
    train_store: RegionStore
    train_captions: list[Caption]
    validation: tuple[RegionStore, list[str], torch.Tensor]


def _load_data(config: DataConfig) -> _Data:
    captions_path = config.folder / "captions.jsonl"
    train_store = RegionStore(config.folder / f"{config.train}.h5")
    store = RegionStore(config.folder / f"{config.validation}.h5")
    if store.dim != train_store.dim:
        raise ValueError(
            f"{config.folder}: split {config.train!r} has region features of dim {train_store.dim} and split "
            f"{config.validation!r} of dim {store.dim}; extract both with the same extractor"
        )
    captions = load_captions(captions_path, config.validation)
    caption_image = caption_image_index(captions, store.image_id)
    sentences = [caption.caption for caption in captions]
    return _Data(train_store, load_captions(captions_path, config.train), (store, sentences, caption_image))


def _build_matcher(config: TrainConfig, store: RegionStore) -> Matcher:
    """The matcher of a configuration; what the data decides (dim, vocabulary, extractor) is read from the data."""
    vocabulary = None
    if config.model.text["name"] != "bert":
        vocabulary = Vocabulary.load(config.data.folder / "vocabulary.json")
    matcher = Matcher(
        image={**config.model.image, "input_dim": store.dim},
        text=config.model.text,
        head=config.model.head,
        vocabulary=vocabulary.words if vocabulary is not None else None,
        extractor=store.attributes["extractor"],
    )
    if config.model.word_vectors is not None:
        if vocabulary is None or not isinstance(matcher.text_encoder, GRUEncoder):
            raise ValueError("word_vectors start a GRU text encoder; a transformer brings its own")
        vectors, found = load_word_vectors(config.model.word_vectors, vocabulary)
        matcher.text_encoder.start_from(vectors, found)
    return matcher


def _loader(run: _Run, dataset: PairDataset, batches: ShuffledBatches, epoch: int) -> Iterator[tuple[int, PairBatch]]:
    """The batches of an epoch that have not been trained yet, each with its number."""
    start = run.batch
    loader = DataLoader(
        dataset,
        batch_sampler=batches.epoch(epoch, start),  # type: ignore[arg-type]
        collate_fn=_whole_batch,
        num_workers=run.config.data.workers,
        worker_init_fn=_ignore_interrupts,
        # An own generator: the loader must not draw from the global one, which a resumed run could not repeat.
        generator=torch.Generator().manual_seed(run.config.seed),
    )
    hidden = not (run.config.progress and run.accelerator.is_main_process)
    bar = tqdm(loader, f"epoch {epoch + 1}/{run.config.epochs}", len(batches), initial=start, disable=hidden)
    yield from enumerate(bar, start)


def _whole_batch(batch: PairBatch) -> PairBatch:
    """`PairDataset.__getitems__` has already made a batch of the items."""
    return batch


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches the workers too; the training process decides when they stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _optimizer(module: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return kinds[config.name](parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    total = steps_per_epoch * config.epochs
    rule = config.optimizer

    def factor(step: int) -> float:
        warmth = min(1.0, (step + 1) / rule.warmup_steps) if rule.warmup_steps else 1.0
        if rule.schedule == "step":
            return warmth * rule.decay ** (step // steps_per_epoch // rule.decay_epochs)
        if rule.schedule == "cosine":
            return warmth * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        return warmth

    return LambdaLR(optimizer, factor)


def _refuse_other_config(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """A resumed run may train longer or elsewhere, but not differently."""
    free = {"output", "epochs", "resume", "progress", "validate_every"}
    different = [key for key in config if key not in free and saved.get(key) != config[key]]
    if different:
        changes = "; ".join(f"{key}: {saved.get(key)} then, {config[key]} now" for key in different)
        raise ValueError(f"this run was started with another configuration ({changes}); use that one to resume")


def _summary(results: dict[str, Any], step: int, is_best: bool) -> str:
    recalls = "  ".join(
        f"{way} " + " ".join(f"{results[way][f'R@{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
    )
    return f"step {step}: {recalls}  rsum {results['rsum']:.1f}{'  (best)' if is_best else ''}"
