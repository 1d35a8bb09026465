"""A run's log: equal runs have equal files, and a killed run ends with the file of an uninterrupted one."""

import hashlib
import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.errors import UserError
from jaxseg.logs import Progress, RunLog, kept_rows, marked_rows, read_metrics, read_rows
from jaxseg.meta import LogMark


def figures(step):
    return {"loss": 1 / (3 + step), "iou": {"road": np.float32(step) / 7, "sky": math.nan}}


def scores(step):
    return {**figures(step), "pixel_accuracy": 0.5, "miou": step / 9}


def opened(workdir, *, start_step=0, mark=None, **more):
    """As a run opens its log."""
    return RunLog(workdir, start_step=start_step, rows=kept_rows(workdir, start_step, mark), **more)


def write_run(workdir, steps, start_step=0, mark=None):
    """The marks of the steps that are saved: every fourth, before it is scored, and the sixth."""
    marks = {}
    with opened(workdir, start_step=start_step, mark=mark, tensorboard=False) as log:
        for step in steps:
            log.write(step, "train", figures(step))
            if step % 4 == 0 or step == 6:
                # As it comes back from a checkpoint.
                marks[step] = LogMark(**json.loads(json.dumps(log.mark()._asdict())))
            if step % 4 == 0:
                log.write(step, "val", scores(step))
    return marks


def test_a_line_is_what_was_written(tmp_path):
    values = {"a": 0.1, "b": [1, math.inf, None], "c": jnp.float32(0.25), "d": np.array([[2, 3]]), "e": True}
    with opened(tmp_path, start_step=0, tensorboard=False) as log:
        log.write(3, "train", {**values, "f": {"x": np.int64(2**53 + 1), "y": math.nan}})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == (
        '{"step": 3, "split": "train", "a": 0.1, "b": [1, null, null], "c": 0.25, "d": [[2, 3]], '
        '"e": true, "f": {"x": 9007199254740993, "y": null}}\n'
    )
    assert read_metrics(tmp_path) == [json.loads(line)]


@pytest.mark.parametrize("value", [1 / 3, 5e-324, 1.7976931348623157e308, float(np.float32(0.1))])
def test_floats_come_back_exactly(tmp_path, value):
    with opened(tmp_path, start_step=0, tensorboard=False) as log:
        log.write(1, "train", {"loss": value})
    assert read_metrics(tmp_path)[0]["loss"] == value
    assert read_metrics(tmp_path)[0]["loss"] != np.nextafter(value, 0)


def test_a_line_is_on_disk_before_the_next_is_written(tmp_path):
    with opened(tmp_path, start_step=0, tensorboard=False) as log:
        log.write(1, "train", {"loss": 1.0})
        assert len(read_metrics(tmp_path)) == 1


def test_a_step_and_split_stand_once(tmp_path):
    with opened(tmp_path, start_step=0, tensorboard=False) as log:
        log.write(1, "val", {**scores(1), "miou": 0.5})
        log.write(np.int32(1), "val", {**scores(1), "miou": 0.6})
        log.write(1, "train", {"loss": 0.7})
        mark = log.mark()
    with opened(tmp_path, start_step=1, mark=mark, tensorboard=False) as log:
        log.write(1, "val", {"miou": 0.8})
    assert [(r["step"], r["split"]) for r in read_metrics(tmp_path)] == [(1, "val"), (1, "train")]
    assert read_metrics(tmp_path)[0]["miou"] == 0.5


@pytest.mark.parametrize(
    "torn", ["", '{"step": 8, "spl', '{"step": 8, "split": "train"}', "{}\n", "\0\0\n", '{"step": 4}\nx\n']
)
@pytest.mark.parametrize("saved", [0, 4, 6])
def test_a_killed_run_ends_with_the_file_of_an_uninterrupted_one(tmp_path, capsys, saved, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_run(whole, range(1, 13))
    marks = write_run(killed, range(1, 8) if saved else range(1, 4))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_run(killed, range(saved + 1, 13), saved, marks[saved] if saved else None)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not capsys.readouterr().err


def test_the_comparison_of_files_sees_a_step_too_few(tmp_path):
    write_run(tmp_path / "whole", range(1, 13))
    marks = write_run(tmp_path / "killed", range(1, 8))
    write_run(tmp_path / "killed", range(6, 13), 4, marks[4])
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed")]
    assert files[0] != files[1]


def cut(content):
    return content[: len(content) // 2]


def a_figure_changed(content):
    return content.replace(b'"miou": 0.4444444444444444', b'"miou": 0.9444444444444444')


def a_line_gone(content):
    return content.split(b"\n", 1)[1]


def no_text(content):
    return b"\xff" * len(content)


@pytest.mark.parametrize("change", [cut, a_figure_changed, a_line_gone, no_text, None])
def test_a_log_that_was_changed_is_kept_and_the_evaluations_come_from_the_checkpoint(
    tmp_path, capsys, change
):
    marks = write_run(tmp_path, range(1, 10))
    log, kept = tmp_path / "metrics.jsonl", tmp_path / "broken" / "metrics.jsonl.0"
    content = log.read_bytes()
    changed = None if change is None else change(content)
    assert changed != content
    log.unlink()
    if changed is not None:
        log.write_bytes(changed)
    write_run(tmp_path, range(9, 13), 8, marks[8])
    rows = [(r["step"], r["split"]) for r in read_metrics(tmp_path)]
    # The score of step 8 itself came after its checkpoint.
    assert rows == [(8, "lost"), (4, "val"), *((step, "train") for step in range(9, 13)), (12, "val")]
    assert read_metrics(tmp_path)[1]["miou"] == 4 / 9
    said = capsys.readouterr().err
    assert f"{log} is not what this run had written up to step 8" in said and said.count("\n") == 1
    assert (f"now {kept}" in said) == (changed is not None)
    assert changed is None or kept.read_bytes() == changed


def test_a_log_that_was_lost_is_the_runs_own_again(tmp_path, capsys):
    """Of a run that had ended: no later save has a mark of what it writes then."""
    marks = write_run(tmp_path, range(1, 9))
    (tmp_path / "metrics.jsonl").unlink()
    with opened(tmp_path, start_step=8, mark=marks[8], tensorboard=False) as log:
        log.write(8, "val", scores(8))
    assert "is not what this run had written" in capsys.readouterr().err
    written = (tmp_path / "metrics.jsonl").read_bytes()
    with opened(tmp_path, start_step=8, mark=marks[8], tensorboard=False) as log:
        assert [row["step"] for row in log.evaluations()] == [4, 8]
    assert (tmp_path / "metrics.jsonl").read_bytes() == written
    assert not capsys.readouterr().err
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'"miou": 0.8888888888888888', b'"miou": 0.9888888888888888', "fails its checksum"),
        (
            b'"pixel_accuracy": 0.5, "miou": 0.8',
            b'"pixel_accuracy": "x", "miou": 0.8',
            "no line of a run log",
        ),
        (b'{"step": 8, "split": "val"', b'{"step": 8; "split": "val"', "no line of a run log"),
    ],
)
def test_a_score_that_was_changed_after_the_save_is_left_out(tmp_path, capsys, old, new, says):
    marks = write_run(tmp_path, range(1, 9))
    log = tmp_path / "metrics.jsonl"
    content = log.read_bytes()
    assert content.count(old) == 1
    log.write_bytes(content.replace(old, new))
    rows = marked_rows(log, 8, marks[8])
    assert [(r["step"], r["split"]) for r in rows][-2:] == [(7, "train"), (8, "train")]
    said = capsys.readouterr().err
    assert said.startswith(f"Warning: {log}: the line after step 8 is left out: ") and says in said


def test_the_last_steps_of_an_earlier_start_are_known(tmp_path):
    marks = write_run(tmp_path, range(1, 14))
    with opened(tmp_path, start_step=12, mark=marks[12], tensorboard=False) as log:
        assert [row["step"] for row in log.earlier_steps] == list(range(3, 13))


def test_a_score_stands_once(tmp_path):
    marks = write_run(tmp_path, range(1, 9))
    log = tmp_path / "metrics.jsonl"
    content = log.read_bytes()
    log.write_bytes(content + content.splitlines(keepends=True)[-1])
    rows = marked_rows(log, 8, marks[8])
    assert [(r["step"], r["split"]) for r in rows][-2:] == [(8, "train"), (8, "val")]


def test_a_damaged_line_of_the_clock_stops_no_run(tmp_path, capsys):
    content = b'{"step": 1, "seconds": 2.0}\nx\n{"step": 2, "seconds": 3.0}\n'
    (tmp_path / "timings.jsonl").write_bytes(content)
    with opened(tmp_path, tensorboard=False) as log:
        log.time(3, {})
    assert [row["step"] for row in read_rows(tmp_path / "timings.jsonl")] == [1, 2, 3]
    kept = tmp_path / "broken" / "timings.jsonl.0"
    assert kept.read_bytes() == content
    said = capsys.readouterr().err
    assert "timings.jsonl, line 2" in said and f"now {kept}" in said and said.count("\n") == 1


def test_a_log_whose_checkpoints_are_gone_is_kept(tmp_path, capsys):
    write_run(tmp_path, range(1, 10))
    content = (tmp_path / "metrics.jsonl").read_bytes()
    write_run(tmp_path, range(1, 3))
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    assert (tmp_path / "broken" / "metrics.jsonl.0").read_bytes() == content
    said = capsys.readouterr().err
    assert "goes to step 9 and there is no checkpoint" in said and "starts anew" in said


def test_a_log_without_a_score_whose_checkpoints_are_gone_is_kept(tmp_path, capsys):
    """Saves come between evaluations too, of which timings.jsonl tells."""

    def begin(steps, saved, start_step=0, mark=None):
        with opened(tmp_path, start_step=start_step, mark=mark, tensorboard=False) as log:
            log.started(start_step, {})
            for step in steps:
                log.write(step, "train", figures(step))
                mark = log.mark()
                if step in saved:
                    log.enter("save", step)
        return mark, (tmp_path / "metrics.jsonl").read_bytes()

    mark, content = begin(range(1, 4), saved=())
    begin(range(1, 4), saved=(2,))
    assert not capsys.readouterr().err, "nothing was saved before"
    mark, _ = begin(range(1, 4), saved=())
    assert (tmp_path / "broken" / "metrics.jsonl.0").read_bytes() == content
    said = capsys.readouterr().err
    assert "goes to step 3 and there is no checkpoint" in said and said.count("\n") == 1
    begin(range(4, 6), (), 3, mark)
    assert not capsys.readouterr().err, "with its checkpoint it goes on"
    begin(range(1, 2), saved=())
    assert "goes to step 5 and there is no checkpoint" in capsys.readouterr().err
    begin(range(1, 2), saved=())
    assert not capsys.readouterr().err and len(list((tmp_path / "broken").iterdir())) == 2


def test_nothing_is_lost_where_the_cut_fails(tmp_path, monkeypatch):
    marks = write_run(tmp_path, range(1, 8))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("jaxseg.files.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        opened(tmp_path, start_step=6, mark=marks[6], tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_the_clock_is_in_timings_only_and_they_are_never_cut(tmp_path):
    for _ in range(2):
        with opened(tmp_path, start_step=0, tensorboard=False) as log:
            log.write(5, "train", {"loss": 1.0})
            log.time(5, {"images_per_s": 3.5})
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [row["images_per_s"] for row in rows] == [3.5, 3.5]
    assert set(rows[0]) == {"step", "unix_time", "seconds", "images_per_s"}
    assert read_metrics(tmp_path) == [{"step": 5, "split": "train", "loss": 1.0}]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train"}\nhello\n{"step": 2, "split": "train"}\n'
    )
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1.5, "split": "train"}',
        '{"step": 1}',
        '{"step": 1, "split": "val"}',
        '{"step": -1, "split": "train"}',
        '{"step": 1, "split": "train", "loss": "x"}',
        '{"step": 1, "split": "train", "loss": NaN}',
        '{"step": 1, "split": "val", "loss": "x", "pixel_accuracy": 1, "miou": 1, "iou": {}}',
        '{"step": 1, "split": "val", "loss": 1, "pixel_accuracy": [], "miou": 1, "iou": {}}',
        '{"step": 1, "split": "val", "loss": 1, "pixel_accuracy": 1, "miou": true, "iou": {}}',
        '{"step": 1, "split": "val", "loss": 1, "pixel_accuracy": 1, "miou": 1, "iou": [1]}',
        '{"step": 1, "split": "val", "loss": 1, "pixel_accuracy": 1, "miou": 1, "iou": {"road": "x"}}',
        f'{{"step": 1, "split": "val", "loss": 1{"0" * 400}, "pixel_accuracy": 1, "miou": 1, "iou": {{}}}}',
        "[" * 10**5,
    ],
)
def test_a_line_that_no_run_writes_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 2, "split": "train"}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("torn", ['{"step": 2, "split": "val", "mi', '{"step": 2, "split": "val"}', "{}\n"])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, torn):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n' + torn)
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train"}]


def test_a_workdir_without_a_log_is_named(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl is not there"):
        read_metrics(tmp_path)


def events(workdir):
    """[(tag, step, value)] in the event files (records: length, crc, data, crc), and purged steps."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, purges = [], []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            purges += [event.step] if event.HasField("session_log") else []
            scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return scalars, purges


def test_tensorboard_has_the_scalars_and_the_picture(tmp_path):
    with opened(tmp_path, start_step=0) as log:
        log.write(2, "val", {"loss": 0.5, "iou": {"road": 0.25, "sky": math.nan}, "matrix": [[1, 2]]})
        log.time(2, {"images_per_s": 4.0})
        log.image(2, "val", np.zeros((4, 6, 3), np.uint8))
    scalars, purges = events(tmp_path)
    assert ("val/loss", 2, 0.5) in scalars
    assert ("val/iou/road", 2, 0.25) in scalars
    assert ("time/images_per_s", 2, 4.0) in scalars
    assert {tag for tag, _, _ in scalars} == {"val/loss", "val/iou/road", "time/images_per_s", "val"}
    assert purges == [0]


def test_tensorboard_hides_what_a_killed_run_wrote_after_the_checkpoint(tmp_path):
    with opened(tmp_path, start_step=7, mark=LogMark(0, hashlib.sha256().hexdigest(), [])) as log:
        log.write(8, "train", {"loss": 0.5})
    assert events(tmp_path)[1] == [8]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_off_a_terminal_there_is_a_line_every_so_many_steps():
    out = io.StringIO()
    with Progress(100, 10, "scratch", every=30, stream=out) as bar:
        for step in range(11, 101):
            bar.update(step, loss=1 / step, images_per_s=12.34, wait_share=0.031)
        bar.write("val 0.5")
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["40/100", "70/100", "100/100"]
    assert lines[0].startswith("scratch 40/100 (40%)  loss 0.0250  images/s 12.3  data wait 3%  0:00:0")
    assert lines[0].endswith("left") and not lines[2].endswith("left")
    assert lines[-1] == "val 0.5"
    assert "\r" not in out.getvalue()


def test_the_time_left_is_that_of_the_steps_after_the_first(monkeypatch):
    """The first step compiles, here for a minute and a half; the others take two seconds."""
    clock = iter([0.0, 90.0, *(90.0 + 2.0 * n for n in range(1, 10))])
    monkeypatch.setattr("jaxseg.logs.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    bar = Progress(2000, every=5, stream=out)
    for step in range(1, 7):
        bar.update(step)
    first, sixth = out.getvalue().splitlines()
    assert first == "train 1/2000 (0%)"
    assert sixth == "train 6/2000 (0%)  1:06:28 left"


def test_on_a_terminal_there_is_a_bar_and_text_goes_above_it():
    out = Terminal()
    with Progress(20, 5, stream=out) as bar:
        bar.update(20, loss=0.5, images_per_s=3.0)
        bar.write("val 0.5")
    assert "20/20" in out.getvalue() and "\r" in out.getvalue()
    assert "val 0.5\n" in out.getvalue()
