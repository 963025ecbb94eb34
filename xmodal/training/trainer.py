"""The trainer: one loop for every model, every head and every objective; what is trained is the task's to say."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from tqdm import tqdm

from xmodal.compiled import VARIABLE
from xmodal.data.atomic import locked
from xmodal.data.workers import read_ahead
from xmodal.products import products_as
from xmodal.training import checkpoints
from xmodal.training.config import RetrievalConfig, RunConfig, TrainConfig, criterion_of, flatten, from_dict, to_dict
from xmodal.training.kept_memory import freed_memory_is_kept
from xmodal.training.matching import MatchingTask
from xmodal.training.moving import moved
from xmodal.training.optimizer import clip_gradient, make_optimizer, make_schedule
from xmodal.training.parts import changes, completed
from xmodal.training.retrieval import RetrievalTask
from xmodal.training.sampler import steps_in_epoch
from xmodal.training.unread import ReadStep, UnreadStep, UnreadSteps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch.optim.lr_scheduler import LambdaLR

    from xmodal.training.adversary import Adversary
    from xmodal.training.task import Batches, Task

TASKS: dict[type[RunConfig], type[Task]] = {TrainConfig: MatchingTask, RetrievalConfig: RetrievalTask}
"""What a configuration trains."""


PATHS_OF_DATA = {"data.folder", "data.path", "data.source.folder", "model.word_vectors", "model.start_from"}
"""Options that only say where the data is, or what a run began with."""

STATE = {"config", "step_module", "optimizer", "scheduler", "scaler", "step", "best", "random_states", "adversary"}
"""What a checkpoint holds at least."""


class Interrupted(SystemExit):
    """Training stopped on a signal after saving its state; exits with 128 + the signal's number, as shells expect."""


def train(config: RunConfig) -> dict[str, Any]:
    """Train as configured; returns the validation results of the best checkpoint.

    The run folder gets `config.yaml`, `environment.json`, `log.jsonl`, `checkpoint.pt` (the last state, for
    `resume`; `checkpoint.1.pt` is the one before) and `best/` (the best model on the validation split).

    Raises:
        FileNotFoundError: for data that is not there.
        FileExistsError: if the run folder already holds a run and `resume` is not set.
        BlockingIOError: if another process trains into the run folder.
        OSError: if the run folder cannot be written.
        ValueError: for a configuration or data that cannot work.
        FloatingPointError: if the loss or its gradient stops being finite, naming the batch; the last checkpoint stays.
        Interrupted: on SIGINT or SIGTERM, after saving.

    >>> from pathlib import Path
    >>> from xmodal.data.labelled import LabelledSet, save_features
    >>> from xmodal.training.config import EmbedderConfig, LabelledDataConfig
    >>> names, classes = [f"{number}.jpg" for number in range(8)], ["gull", "wren", "tern", "owl"] * 2
    >>> birds = LabelledSet(names, classes, ["train", "train", "dev", "dev"] * 2)
    >>> save_features("birds.h5", torch.randn(8, 16), birds, {})
    >>> data = LabelledDataConfig(Path("birds.h5"), images_per_class=2)
    >>> model, objective = EmbedderConfig({"name": "mlp"}, dim=4), {"name": "metric", "metric": {"name": "binomial"}}
    >>> run = {"output": Path("run"), "epochs": 2, "batch_size": 4, "recall_at": (1, 3), "progress": False}
    >>> train(RetrievalConfig(data=data, model=model, objective=objective, **run))["R@3"]
    100.0
    >>> sorted(path.name for path in Path("run").glob("*.*"))
    ['checkpoint.1.pt', 'checkpoint.pt', 'config.yaml', 'environment.json', 'log.jsonl']
    """
    config = completed(config)
    saved = _last_state(config)
    with _accelerated(config) as accelerator, contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(locked(config.output))
        _take_products_of(saved, stack)
        if accelerator.device.type == "cpu":
            stack.enter_context(freed_memory_is_kept())
        return _train(config, accelerator, saved)


def _train(config: RunConfig, accelerator: Accelerator, saved: dict[str, Any] | None) -> dict[str, Any]:
    set_seed(config.seed)
    task = TASKS[type(config)](config, accelerator.device, accelerator.num_processes)
    batches = task.batches(accelerator.process_index, accelerator.num_processes)
    steps_per_epoch = steps_in_epoch(batches, config.accumulate)
    step_module = task.step_module
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        step_module = nn.SyncBatchNorm.convert_sync_batchnorm(step_module)
    optimizer = make_optimizer(step_module, config.optimizer)
    scheduler = make_schedule(optimizer, config.optimizer, steps_per_epoch, config.epochs)
    step_module, optimizer = accelerator.prepare(step_module, optimizer)
    run = _Run(config, accelerator, task, step_module, optimizer, scheduler, steps_per_epoch)
    if saved is not None:
        _refuse_other_data(saved, task, config)
        run.restore(saved)
    if accelerator.is_main_process:  # after what cannot be trained was refused, which leaves all as it was
        checkpoints.write_config(config.output, to_dict(config))

    log = checkpoints.Log(config.output, run.step) if accelerator.is_main_process else contextlib.nullcontext()
    with log as run.log, _SignalFlag() as stop:
        for epoch in range(run.step // steps_per_epoch, config.epochs):
            with contextlib.closing(_groups(run, batches, epoch)) as groups:
                for group in groups:
                    if run.is_out_of_patience():
                        return run.best
                    run.train_step(group)
                    if run.validation_is_due():
                        run.validate()
                    if stop.agreed(accelerator):
                        run.save()
                        raise Interrupted(128 + stop.signal)
        if not run.best:  # a finished run, resumed without its best model
            run.validate()
    return run.best


@dataclass
class _Run:
    """What changes while a run goes on, how to save it and how to restore it.

    The number of steps done says all about where it is: the order of the data is a function of seed and epoch.
    """

    config: RunConfig
    accelerator: Accelerator
    task: Task
    step_module: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    steps_per_epoch: int
    log: checkpoints.Log | None = None
    unread: UnreadSteps = field(default_factory=UnreadSteps)
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    def train_step(self, group: list[Any]) -> None:
        """One step along the gradient averaged over a group of batches."""
        started = time.perf_counter()
        accelerator = self.accelerator
        self.step_module.train()
        losses: list[dict[str, torch.Tensor]] = []
        for batch in moved(map(self.task.prepare, group), accelerator.device):
            is_last = len(losses) == len(group) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.step_module):
                terms = self.step_module(batch, self.step, *self._opponents)
                accelerator.backward(terms["total"] / len(group))
            losses.append({name: term.detach() for name, term in terms.items()})
        norms = {name: value for opponent in self._opponents for name, value in opponent.gradient_norms().items()}
        norms["gradient_norm"] = self._clip()
        learning_rate = float(self.scheduler.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        took = time.perf_counter() - started
        self.unread.add(UnreadStep(self.step, self.task.describe(group), losses, norms, learning_rate, took))
        if self.step % self.config.log_every == 0:
            self.read_steps()

    def read_steps(self) -> None:
        """Read what the steps since the last reading came to: check that it is finite, and log it."""
        for read in self.unread.read():
            self._check_finite("loss", read.losses["total"], read)
            if self.accelerator.scaler is None:  # a scaler of float16 gradients skips such steps by itself
                self._check_finite("gradient", read.others["gradient_norm"], read)
            if self.log is None:
                continue
            self.log.write(
                read.step,
                epoch=(read.step - 1) // self.steps_per_epoch,
                **{f"loss/{name}": value for name, value in read.losses.items()},
                **read.others,
                learning_rate=read.learning_rate,
                seconds=read.seconds,
            )
            if warning := self.task.warning(read.losses):
                tqdm.write(f"warning, step {read.step}: {warning}")

    @property
    def _opponents(self) -> tuple[Adversary, ...]:
        """What is trained against the model, by steps of its own within the forward pass; one or none."""
        return () if self.task.adversary is None else (self.task.adversary,)

    def _clip(self) -> torch.Tensor:
        """Clip the gradient as configured; its norm before."""
        accelerator, config = self.accelerator, self.config.optimizer
        limit = config.clip_norm or math.inf
        if config.repeated:
            accelerator.unscale_gradients()
            return clip_gradient(self.optimizer.param_groups, limit)
        return torch.as_tensor(accelerator.clip_grad_norm_(self.step_module.parameters(), limit))

    @staticmethod
    def _check_finite(name: str, value: float, read: ReadStep) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} after step {read.step - 1}, on {read.items} (positions in "
                "the training split). The last checkpoint is intact. Lower the learning rate, or look for bad features "
                "with RegionStore.validate()."
            )

    def validation_is_due(self) -> bool:
        """At the end of every epoch, and every `validate_every` steps."""
        return self._is_validated(self.step)

    def _is_validated(self, step: int) -> bool:
        every = self.config.validate_every
        return self._ends_epoch(step) or (every > 0 and step % every == 0)

    def _ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0

    def _may_be_best(self, step: int) -> bool:
        """Whether a model is validated after a step and may become the best one then."""
        return self._is_validated(step) and (self._ends_epoch(step) or self.config.best_at == "every_validation")

    def is_out_of_patience(self) -> bool:
        """Whether so many validations as are waited for, of those that count, have gone by since the best."""
        patience, best = self.config.patience, self.best.get("step")
        if not patience or best is None or not self._may_be_best(self.step):
            return False
        since = sum(self._may_be_best(step) for step in range(best + 1, self.step + 1))
        if since >= patience and self.config.progress and self.accelerator.is_main_process:
            tqdm.write(f"step {self.step}: {since} validations without a better result; training ends")
        return since >= patience

    def validate(self) -> None:
        """Evaluate the model as its task does, on the main process; keep the best one; save the state."""
        config, task = self.config, self.task
        self.read_steps()
        if self.accelerator.is_main_process:
            self.step_module.eval()
            results = task.validate()
            epoch = self.step / self.steps_per_epoch
            if self.log is not None:
                self.log.write(self.step, epoch=epoch, validation=results)
            is_best = self._may_be_best(self.step) and (
                not self.best or criterion_of(results, config.criterion) > criterion_of(self.best, config.criterion)
            )
            if is_best:
                self.best = {**results, "step": self.step, "epoch": epoch}
            if config.progress:
                tqdm.write(f"step {self.step}: {task.summary(results)}{'  (best)' if is_best else ''}")
        self.best = broadcast_object_list([self.best])[0]
        self.save()
        self.keep_best()

    def keep_best(self) -> None:
        """Keep the model if it is the best one: after the state, from which whoever is killed in between makes up."""
        if self.accelerator.is_main_process and self.best and self.best["step"] == self.step:
            checkpoints.save_best(self.config.output, self.task.model)

    def save(self) -> None:
        """Save everything that a resumed run needs to be the same run, once its steps are known to be good."""
        self.read_steps()
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
                    "data": self.task.fingerprint,
                    "step": self.step,
                    "best": self.best,
                    "random_states": random_states,
                    "adversary": [opponent.state_dict() for opponent in self._opponents],
                },
                keep=self.config.keep,
            )
        self.accelerator.wait_for_everyone()

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `save`."""
        self.accelerator.unwrap_model(self.step_module).load_state_dict(saved["step_module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        for opponent, state in zip(self._opponents, saved["adversary"], strict=True):
            opponent.load_state_dict(state)
        self.step, self.best = saved["step"], saved["best"]
        # A run may go on with another number of processes, though not bit for bit.
        random_states = saved["random_states"]
        checkpoints.restore_random_states(random_states[self.accelerator.process_index % len(random_states)])
        self.keep_best()
        if self.best and self.best["step"] != self.step and not (self.config.output / checkpoints.BEST).is_dir():
            tqdm.write(f"{self.config.output / checkpoints.BEST} is gone; the best model from here on is kept")
            self.best = {}


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
def _accelerated(config: RunConfig) -> Iterator[Accelerator]:
    """An Accelerator for one run: what accelerate keeps in the process is cleared, so that another run may differ."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    try:
        if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError(
                "mixed_precision is 'fp16', but this runs on a CPU, where nothing scales float16's gradients and "
                "accelerate leaves the setting out; wanted no or bf16, or a GPU"
            )
        yield accelerator
    finally:
        # What still holds the process group must go before it, or the process may abort when it exits.
        gc.collect()
        accelerator.end_training()
        AcceleratorState._reset_state(reset_partial_state=True)


def _last_state(config: RunConfig) -> dict[str, Any] | None:
    """The state to resume from; None for a new run, which must not write over another one."""
    checkpoint, best = config.output / checkpoints.CHECKPOINT, config.output / checkpoints.BEST
    if checkpoints.goes_on(config):
        saved = checkpoints.load_checkpoint(config.output)
        if missing := STATE.difference(saved):
            raise ValueError(f"{checkpoint} holds another kind of state: it lacks {', '.join(sorted(missing))}")
        then = from_dict(type(config), saved["config"], "the configuration of this run")
        _refuse_other_config(then, config, data_is_known="data" in saved)
        return saved
    if checkpoint.exists():
        raise FileExistsError(
            f"{config.output} already holds a run; pass --resume to go on, or another --output to start a new one"
        )
    if best.exists():
        raise FileExistsError(
            f"{config.output} already holds a run's model, {best}, without a checkpoint to go on from; pass another "
            "--output to start a new run"
        )
    return None


def _take_products_of(saved: dict[str, Any] | None, stack: contextlib.ExitStack) -> None:
    """A resumed run multiplies as it did, by whose last bits it would be another run; says so where it cannot."""
    before, now = (saved or {}).get("environment", {}), checkpoints.attention()
    lost = list(stack.enter_context(products_as(before.get("products", {}))))
    then = before.get("attention", "torch") if before else now
    if then != now:
        lost.append(f"attention was computed otherwise, {then!r} then and {now!r} now; see {VARIABLE}")
    for each in lost:
        tqdm.write(f"this run goes on, but not bit for bit: {each}")


def _refuse_other_config(saved: RunConfig, config: RunConfig, *, data_is_known: bool) -> None:
    """A resumed run may train longer or elsewhere, but not differently; data that is known again may have moved."""
    free = {"output", "data.workers", "resume", "resume_if_present", "keep", "progress", "validate_every", "log_every"}
    if config.optimizer.schedule != "cosine":  # which depends on the number of epochs
        free.add("epochs")
    if data_is_known:
        free |= PATHS_OF_DATA
    different = {path: values for path, values in changes(saved, config).items() if path not in free}
    if different:
        told = "; ".join(f"{path}: {then} then, {now} now" for path, (then, now) in different.items())
        raise ValueError(f"this run was started with another configuration ({told}); use that one to resume")


def _refuse_other_data(saved: dict[str, Any], task: Task, config: RunConfig) -> None:
    """A resumed run must see the same images and captions in the same order, wherever they are now."""
    if saved.get("data", task.fingerprint) != task.fingerprint:
        place = next(value for path, value in flatten(to_dict(config)).items() if path in PATHS_OF_DATA)
        raise ValueError(
            f"{place} holds other data than this run was started with: the names of its images or captions, their "
            "order or the vocabulary differ. Resume with the data of then, or start a new run in another --output"
        )


def _groups(run: _Run, batches: Batches, epoch: int) -> Generator[list[Any]]:
    """The batches of an epoch that have not been trained yet, in groups of those that make one step."""
    config, first_step = run.config, run.step % run.steps_per_epoch
    read = read_ahead(
        run.task.dataset,
        run.task.workers,
        batch_sampler=batches.epoch(epoch, first_step * config.accumulate),
        pin_memory=run.accelerator.device.type == "cuda",
        # An own generator: the loader must not draw from the global one, which a resumed run could not repeat.
        generator=torch.Generator().manual_seed(config.seed),
    )
    hidden = not (config.progress and run.accelerator.is_main_process)
    title = f"epoch {epoch + 1}/{config.epochs}"
    bar = tqdm(desc=title, total=run.steps_per_epoch, initial=first_step, unit="step", disable=hidden)
    with bar, read as remaining:
        while group := list(itertools.islice(remaining, config.accumulate)):
            yield group
            bar.update()
