"""A profile of some training steps, which TensorBoard and Perfetto open."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

WARM_UP = 2
"""Steps of a start that are left out: the first one compiles."""


class Trace:
    """Records `steps` steps into `folder`; none for 0. Leaving it ends a recording that is under way."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self._steps = steps
        self._seen = 0
        self._is_on = False

    def after_step(self, state: Any) -> str | None:
        """To be called after each step with what it makes; what to tell of a recording that has ended."""
        if not self._steps:
            return None
        self._seen += 1
        if self._seen == WARM_UP:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
            self._is_on = True
        elif self._seen == WARM_UP + self._steps:
            jax.block_until_ready(state)  # else the end of the last step is missing
            self._stop()
            return (
                f"Profile of {self._steps} steps: {self.folder}; look at it with TensorBoard and its plugin "
                "tensorboard-plugin-profile, or at its trace.json.gz on ui.perfetto.dev"
            )
        return None

    def _stop(self) -> None:
        self._is_on = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_on:
            self._stop()
