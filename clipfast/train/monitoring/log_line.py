"""The lines of training steps and evaluations in out.log, as open_clip 3.3.0 writes them."""

from __future__ import annotations

from collections.abc import Mapping

from clipfast.train.monitoring.records import StepRecord, Window


def evaluation_line(epochs_done: int, metrics: Mapping[str, float]) -> str:
    words = "\t".join(f"{name}: {round(value, 4):.4f}" for name, value in metrics.items())
    return f"Eval Epoch: {epochs_done} {words}"


class LogLine:
    """A training step's. Times are means since the line before; losses are this step's and the
    mean over the epoch's lines; samples are all ranks'.

    Args:
        global_batch: samples of a step, of all ranks.
        world_size: ranks.
        steps_per_epoch: steps.
    """

    def __init__(self, global_batch: int, world_size: int, steps_per_epoch: int) -> None:
        self.global_batch, self.world_size = global_batch, world_size
        self.steps_per_epoch = steps_per_epoch
        self._window, self._losses, self._epoch = Window(), Window(), -1

    def add(self, record: StepRecord) -> None:
        """Every step, whether it gets a line or not."""
        self._window.add(record)

    def write(self, epoch: int, step: int, record: StepRecord) -> str:
        """The line of a step that was taken; `step` counts from 0 in its epoch."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._losses.clear()
        self._losses.add(record)
        window, samples = self._window, self.steps_per_epoch * self.global_batch
        done, rates = (step + 1) * self.global_batch, self.rates(record)
        line = (
            f"Train Epoch: {epoch} [{done:>{len(str(samples))}}/{samples} "
            f"({100 * (step + 1) / self.steps_per_epoch:.0f}%)] "
            f"Data (t): {window.data_time / window.steps:.3f} "
            f"Batch (t): {window.batch_time / window.steps:.3f}, "
            f"{rates[0]:#g}/s, {rates[1]:#g}/s/gpu "
            f"LR: {record.lr:5f} Logit Scale: {record.logit_scale:.3f} {self._loss_words(record)}"
        )
        window.clear()
        return line

    def scalars(self, record: StepRecord) -> dict[str, float]:
        """The same step as dashboards get it, under open_clip's names."""
        rates = self.rates(record)
        return {
            "data_time": record.data_time,
            "batch_time": record.batch_time,
            "samples_per_second": rates[0],
            "samples_per_second_per_gpu": rates[1],
            "scale": record.logit_scale,
            "lr": record.lr,
            **record.parts,
            "loss": record.loss,
        }

    def rates(self, record: StepRecord) -> tuple[float, float]:
        """Samples per second of all ranks, and of one."""
        rate = self.global_batch / record.batch_time
        return rate, rate / self.world_size

    def _loss_words(self, record: StepRecord) -> str:
        means = self._losses.means()
        losses = record.parts | {"loss": record.loss}
        return " ".join(
            f"{name.capitalize()}: {value:#.5g} ({means[name]:#.5g})"
            for name, value in losses.items()
        )
