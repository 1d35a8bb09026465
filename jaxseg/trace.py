"""A profile of some training steps, which TensorBoard and Perfetto open."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from jaxseg.errors import one_line

WARM_UP = 2
"""Steps of a start that are left out: the first one compiles."""


class Trace:
    """Records `steps` steps into `folder`; none for 0. Leaving it ends a recording that is under way.

    What keeps a recording from being made is said, and the run goes on.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        """Makes the folder; raises OSError where that can't be done, before a step is taken."""
        self.folder = folder
        self._steps = steps
        self._seen = 0
        self._is_on = False
        if steps:
            folder.mkdir(parents=True, exist_ok=True)

    def after_step(self, state: Any) -> str | None:
        """To be called after each step with what it makes; what to tell of a recording that has ended."""
        if not self._steps:
            return None
        self._seen += 1
        if self._seen == WARM_UP:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            # Python's calls slow the host, and are so many that the steps may fall out of trace.json.gz.
            options.python_tracer_level = 0
            try:
                jax.profiler.start_trace(self.folder, profiler_options=options)
            except (RuntimeError, OSError) as e:
                return self._given_up(e)
            self._is_on = True
        elif self._seen == WARM_UP + self._steps:
            jax.block_until_ready(state)  # else the end of the last step is missing
            return self._ended()
        return None

    def _ended(self) -> str:
        """Writes what was recorded; what to tell of it."""
        self._is_on = False
        recorded, steps = self._seen - WARM_UP, self._steps
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as e:
            return self._given_up(e)
        self._steps = 0
        if not recorded:
            return self._too_short()
        asked = "" if recorded == steps else f" of the {steps} asked for, behind which the run ended"
        return (
            f"Profile of {recorded} steps{asked}: {self.folder}; look at it with TensorBoard and its plugin "
            "tensorboard-plugin-profile, or at its trace.json.gz on ui.perfetto.dev"
        )

    def _too_short(self) -> str:
        return (
            f"Warning: no profile: of the {self._seen} steps that were left to take the first {WARM_UP} "
            "are not recorded; use a larger --config.train.steps, or another --workdir"
        )

    def _given_up(self, error: Exception) -> str:
        self._steps = 0
        return f"Warning: no profile: {one_line(str(error))}; the run goes on without"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_on:
            print(self._ended(), file=sys.stderr)
        elif self._steps and kind is None:
            print(self._too_short(), file=sys.stderr)
