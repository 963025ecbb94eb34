"""The trainer: one loop for every head and every objective."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from xmodal.data import PairBatch, PairDataset, RegionStore, Vocabulary, load_captions
from xmodal.data.captions import caption_image_index
from xmodal.data.pairs import whole_batch
from xmodal.data.word_vectors import load_word_vectors
from xmodal.encoders.gru import GRUEncoder
from xmodal.evaluation import evaluate_protocol
from xmodal.model import Matcher
from xmodal.names import build
from xmodal.objectives import OBJECTIVES
from xmodal.training import checkpoints
from xmodal.training.augmentation import shrink
from xmodal.training.config import OptimizerConfig, TrainConfig, flatten, to_dict
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
        OSError: if the run folder cannot be written.
        ValueError: for a configuration or data that cannot work.
        FloatingPointError: if the loss or its gradient stops being finite, naming the batch; the last checkpoint stays.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    saved = _last_state(config)
    with _accelerated(config) as accelerator:
        return _train(config, accelerator, saved)


def _train(config: TrainConfig, accelerator: Accelerator, saved: dict[str, Any] | None) -> dict[str, Any]:
    set_seed(config.seed)
    if accelerator.is_main_process:
        checkpoints.write_config(config.output, to_dict(config))
    data = _load_data(config)
    matcher = _build_matcher(config, data.train_store)
    train_set = PairDataset(data.train_store, data.train_captions, matcher.tokenizer)
    batches = ShuffledBatches(
        len(train_set), config.batch_size, config.seed, accelerator.process_index, accelerator.num_processes
    )
    steps_per_epoch = math.ceil(len(batches) / config.accumulate)
    step_module: nn.Module = MatchingStep(
        matcher, build("objective", OBJECTIVES, config.objective), config.model.captioning_weight
    )
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        step_module = nn.SyncBatchNorm.convert_sync_batchnorm(step_module)
    optimizer = _optimizer(step_module, config.optimizer)
    scheduler = _scheduler(optimizer, config.optimizer, steps_per_epoch, config.epochs)
    step_module, optimizer = accelerator.prepare(step_module, optimizer)
    run = _Run(config, accelerator, step_module, optimizer, scheduler, steps_per_epoch)
    if saved is not None:
        run.restore(saved)

    log = checkpoints.Log(config.output, run.step) if accelerator.is_main_process else contextlib.nullcontext()
    with log as run.log, _SignalFlag() as stop:
        for epoch in range(run.step // steps_per_epoch, config.epochs):
            for group in _loader(run, train_set, batches, epoch):
                run.train_step(group)
                if run.validation_is_due():
                    run.validate(data)
                if stop.agreed(accelerator):
                    run.save()
                    raise Interrupted(128 + stop.signal)
    return run.best


@dataclass
class _Run:
    """What changes while a run goes on, how to save it and how to restore it.

    The number of steps done says all about where it is: the order of the data is a function of seed and epoch.
    """

    config: TrainConfig
    accelerator: Accelerator
    step_module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    steps_per_epoch: int
    log: checkpoints.Log | None = None
    step: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {"rsum": -math.inf})

    @property
    def matcher(self) -> Matcher:
        return self.accelerator.unwrap_model(self.step_module).matcher

    def train_step(self, group: list[PairBatch]) -> None:
        """One step along the gradient averaged over a group of batches."""
        started = time.perf_counter()
        accelerator, clip = self.accelerator, self.config.optimizer.clip_norm
        self.step_module.train()
        losses: list[dict[str, torch.Tensor]] = []
        for batch in group:
            batch = PairBatch(*(tensor.to(accelerator.device) for tensor in batch))
            batch = shrink(batch, self.config.data.drop_regions, self.config.data.drop_words)
            is_last = len(losses) == len(group) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.step_module):
                terms = self.step_module(batch, self.step)
                self._check_finite("loss", terms["total"], group)
                accelerator.backward(terms["total"] / len(group))
            losses.append(terms)
        norm = torch.as_tensor(accelerator.clip_grad_norm_(self.step_module.parameters(), clip or math.inf))
        if accelerator.scaler is None:  # a scaler of float16 gradients skips such steps by itself
            self._check_finite("gradient", norm, group)
        learning_rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        if self.log is not None:
            self.log.write(
                self.step,
                epoch=(self.step - 1) // self.steps_per_epoch,
                **{f"loss/{name}": sum(terms[name].item() for terms in losses) / len(losses) for name in losses[0]},
                gradient_norm=norm.item(),
                learning_rate=learning_rate,
                seconds=time.perf_counter() - started,
            )

    def _check_finite(self, name: str, value: torch.Tensor, group: list[PairBatch]) -> None:
        if not bool(value.isfinite()):
            raise FloatingPointError(
                f"the {name} is {value.item()} after step {self.step}, on "
                f"images {torch.cat([batch.image for batch in group]).tolist()} and "
                f"captions {torch.cat([batch.caption for batch in group]).tolist()} (positions in the training split). "
                "The last checkpoint is intact. Lower the learning rate, or look for bad features with "
                "RegionStore.validate()."
            )

    def validation_is_due(self) -> bool:
        """At the end of every epoch, and every `validate_every` steps."""
        every = self.config.validate_every
        return self.step % self.steps_per_epoch == 0 or (every > 0 and self.step % every == 0)

    def validate(self, data: _Data) -> None:
        """Evaluate with the configured protocol, on the main process; keep the best model; save the state."""
        config = self.config
        if self.accelerator.is_main_process:
            self.step_module.eval()
            scores = self.matcher.score_all(
                data.validation_store, data.sentences, images=data.images, progress=config.progress
            )
            results = evaluate_protocol(scores, data.caption_image, config.protocol)
            epoch = self.step / self.steps_per_epoch
            if self.log is not None:
                self.log.write(self.step, epoch=epoch, validation=results)
            is_best = results["rsum"] > self.best["rsum"]
            if is_best:
                self.best = {**results, "step": self.step, "epoch": epoch}
                checkpoints.save_best(config.output, self.matcher)
            if config.progress:
                tqdm.write(_summary(results, self.step, is_best))
        self.best = broadcast_object_list([self.best])[0]
        self.save()

    def save(self) -> None:
        """Save everything that a resumed run needs to be the same run."""
        random_states = gather_object([checkpoints.random_states()])
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
                    "step": self.step,
                    "best": self.best,
                    "random_states": random_states,
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
        self.step, self.best = saved["step"], saved["best"]
        # A run may go on with another number of processes, though not bit for bit.
        random_states = saved["random_states"]
        checkpoints.restore_random_states(random_states[self.accelerator.process_index % len(random_states)])


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
            flag = torch.tensor(self.signal, device=accelerator.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            self.signal = int(flag)
        return self.signal != 0


@contextlib.contextmanager
def _accelerated(config: TrainConfig) -> Iterator[Accelerator]:
    """An Accelerator for one run: what accelerate keeps in the process is cleared, so that another run may differ."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    try:
        yield accelerator
    finally:
        # What still holds the process group must go before it, or the process may abort when it exits.
        gc.collect()
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def _last_state(config: TrainConfig) -> dict[str, Any] | None:
    """The state to resume from; None for a new run, which must not write over another one."""
    if config.resume:
        saved = checkpoints.load_checkpoint(config.output)
        _refuse_other_config(saved["config"], to_dict(config))
        return saved
    if any((config.output / name).exists() for name in (checkpoints.CHECKPOINT, checkpoints.BEST)):
        raise FileExistsError(
            f"{config.output} already holds a run; pass --resume to go on, or another --output to start a new one"
        )
    return None


def _refuse_other_config(saved: dict[str, Any], config: dict[str, Any]) -> None:
    """A resumed run may train longer or elsewhere, but not differently."""
    free = {"output", "data.workers", "resume", "progress", "validate_every"}
    if config["optimizer"]["schedule"] != "cosine":  # which depends on the number of epochs
        free.add("epochs")
    old, new = flatten(saved), flatten(config)
    different = [key for key in {**old, **new} if key not in free and old.get(key) != new.get(key)]
    if different:
        changes = "; ".join(f"{key}: {old.get(key)} then, {new.get(key)} now" for key in different)
        raise ValueError(f"this run was started with another configuration ({changes}); use that one to resume")


class _Data(NamedTuple):
    train_store: RegionStore
    train_captions: list[Caption]
    validation_store: RegionStore
    images: range
    sentences: list[str]
    caption_image: torch.Tensor


def _load_data(config: TrainConfig) -> _Data:
    folder, captions_path = config.data.folder, config.data.folder / "captions.jsonl"
    train_store = RegionStore(folder / f"{config.data.train}.h5")
    store = RegionStore(folder / f"{config.data.validation}.h5")
    if store.dim != train_store.dim:
        raise ValueError(
            f"{folder}: split {config.data.train!r} has region features of dim {train_store.dim} and split "
            f"{config.data.validation!r} of dim {store.dim}; extract both with the same extractor"
        )
    captions = load_captions(captions_path, config.data.validation)
    caption_image = caption_image_index(captions, store.image_id)
    images = range(len(store))[: config.data.validation_images or None]
    sentences = [
        caption.caption for caption, image in zip(captions, caption_image.tolist(), strict=True) if image in images
    ]
    caption_image = caption_image[caption_image < len(images)]
    # A protocol that does not fit is refused now and not after the first epoch.
    evaluate_protocol(torch.zeros(1, 1).expand(len(images), len(sentences)), caption_image, config.protocol)
    train_captions = load_captions(captions_path, config.data.train)
    return _Data(train_store, train_captions, store, images, sentences, caption_image)


def _build_matcher(config: TrainConfig, store: RegionStore) -> Matcher:
    """The matcher of a configuration; what the data decides (dim, vocabulary, extractor) is read from the data."""
    vocabulary = None
    if config.model.text.get("name") != "bert":
        vocabulary = Vocabulary.load(config.data.folder / "vocabulary.json")
    matcher = Matcher(
        image={"input_dim": store.dim, **config.model.image},
        text=config.model.text,
        head=config.model.head,
        vocabulary=vocabulary.words if vocabulary is not None else None,
        extractor=store.attributes["extractor"],
        captioner=config.model.captioner or None,
    )
    if config.model.word_vectors is not None:
        if vocabulary is None or not isinstance(matcher.text_encoder, GRUEncoder):
            raise ValueError("word_vectors start a GRU text encoder; a transformer brings its own")
        vectors, found = load_word_vectors(config.model.word_vectors, vocabulary)
        matcher.text_encoder.start_from(vectors, found)
    return matcher


def _loader(run: _Run, dataset: PairDataset, batches: ShuffledBatches, epoch: int) -> Iterator[list[PairBatch]]:
    """The batches of an epoch that have not been trained yet, in groups of those that make one step."""
    config, first_step = run.config, run.step % run.steps_per_epoch
    loader = DataLoader(
        dataset,
        batch_sampler=batches.epoch(epoch, first_step * config.accumulate),
        collate_fn=whole_batch,  # type: ignore[arg-type]  # `__getitems__` may return anything
        num_workers=config.data.workers,
        worker_init_fn=_ignore_signals,
        # An own generator: the loader must not draw from the global one, which a resumed run could not repeat.
        generator=torch.Generator().manual_seed(config.seed),
    )
    hidden = not (config.progress and run.accelerator.is_main_process)
    title = f"epoch {epoch + 1}/{config.epochs}"
    with tqdm(desc=title, total=run.steps_per_epoch, initial=first_step, unit="step", disable=hidden) as bar:
        remaining = iter(loader)
        while group := list(itertools.islice(remaining, config.accumulate)):
            yield group
            bar.update()


def _ignore_signals(_worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the workers too; the training process decides when they stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return kinds[config.name](parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _scheduler(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps_per_epoch: int, epochs: int
) -> LambdaLR:
    """Linear growth to the peak over the warm-up, times what the configured schedule makes of the peak."""

    def factor(step: int) -> float:
        warmth = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
        if config.schedule == "step":
            return warmth * config.decay ** (step // steps_per_epoch // config.decay_epochs)
        if config.schedule == "cosine":
            after, total = step - config.warmup_steps, steps_per_epoch * epochs - config.warmup_steps
            return warmth * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, after) / max(1, total))))
        return warmth

    return LambdaLR(optimizer, factor)


def _summary(results: dict[str, Any], step: int, is_best: bool) -> str:
    recalls = "  ".join(
        f"{way} " + " ".join(f"{results[way][f'R@{k}']:.1f}" for k in (1, 5, 10)) for way in ("i2t", "t2i")
    )
    return f"step {step}: {recalls}  rsum {results['rsum']:.1f}{'  (best)' if is_best else ''}"
