"""TensorBoard event files; the package is optional and imported when its sink is built."""

from __future__ import annotations

from pathlib import Path

from flowmbpo.errors import ConfigError
from flowmbpo.tracking.sink import MetricSink, Row, finite_numbers


class TensorBoardSink(MetricSink):
    """Scalars over epochs under `folder`; on a resume TensorBoard hides what lay beyond `resume_epoch`.

    Raises ConfigError when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, resume_epoch: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tracking.sinks: 'tensorboard' is not installed. Install it with `pip install tensorboard`, "
                "or use --track none."
            ) from error
        purge = None if resume_epoch is None else resume_epoch + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, row: Row) -> None:
        for key, value in finite_numbers(row).items():
            if key != "epoch":
                self._writer.add_scalar(key, value, int(row["epoch"]))

    def close(self, status: str) -> None:
        self._writer.close()
