"""Memory, threads and open files of a long run stay what they were.

The short part takes 600 steps; the long one, which also prints what it saw:

    JAXSEG_LONG_STEPS=5000 python -m pytest -n0 -s tests/faults/test_long_run.py
"""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from jaxseg.logs import TIMINGS_FILE
from tests.faults.runs import PICTURED, ROOT, command, write_data

STEPS = int(os.environ.get("JAXSEG_LONG_STEPS", "600"))


def watched(argv: list[str], workdir: Path) -> np.ndarray:
    """[N, 4]: step, RSS in MiB, threads and open files of a run, looked at twice a second."""
    seen = []
    printed = workdir.with_suffix(".log")
    with (
        printed.open("w") as log,
        subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        status, files = Path(f"/proc/{process.pid}/status"), Path(f"/proc/{process.pid}/fd")
        while process.poll() is None:
            try:
                facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
                rss, threads = int(facts["VmRSS"].split()[0]) / 1024, int(facts["Threads"])
                seen.append((last_step(workdir), rss, threads, len(list(files.iterdir()))))
            except (KeyError, OSError):
                continue  # it has just ended
            time.sleep(0.5)
        assert process.returncode == 0, printed.read_text()
    return np.array(seen)


def last_step(workdir: Path) -> int:
    file = workdir / TIMINGS_FILE
    if not file.exists():
        return 0
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 400))
        lines = opened.read().split(b"\n")
    return int(lines[-2].split(b":")[1].split(b",")[0]) if len(lines) > 1 else 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_nothing_grows(tmp_path):
    """Evaluated every 50 steps and saved every 25, with TensorBoard, pictures and a log of every step."""
    more = (f"--config.train.steps={STEPS}", "--config.evaluate.every_steps=50", "--config.log.every=1")
    more += ("--config.checkpoint.every_steps=25",)
    prepared = f"--config.dataset.prepared_dir={tmp_path / 'prepared'}"
    argv = [*command(write_data(tmp_path), prepared, *more, *PICTURED), f"--workdir={tmp_path / 'run'}"]
    seen = watched(argv, tmp_path / "run")
    # From the third evaluation on everything is compiled; the report after the last step draws pictures.
    steps, rss, threads, files = seen[(seen[:, 0] > 150) & (seen[:, 0] < STEPS)].T
    assert len(steps) >= 10
    third = len(steps) // 3
    early, late = np.median(rss[:third]), np.median(rss[-third:])
    few, many = np.median(threads[:third]), np.median(threads[-third:])
    slope = np.polyfit(steps, rss, 1)[0] * 1000
    # Not the most: how many files of a save are open when one looks is chance. One left behind by each save
    # would make 12, by each evaluation 6.
    fewest, most = np.median(files[:third]), np.median(files[-third:])
    print(
        f"{STEPS} steps: RSS {early:.0f} MiB in the first third, {late:.0f} in the last ({slope:+.2f} MiB a "
        f"thousand steps); threads {few:.0f} and {many:.0f}, open files "
        f"{fewest:.0f} and {most:.0f}"
    )
    # Tensorstore itself loses 0.1 MiB a save, see tests/test_checkpoints.py.
    assert late < early * 1.03 + 5, (early, late)
    # Pools grow by a thread or two on a busy machine; one left behind by each evaluation would make 6.
    assert many <= few + 5
    assert most <= fewest + 4
