"""How cost grows, and what is flagged and left out of it."""

import math

import pytest

from jaxseg.benchmark import growth, options
from jaxseg.benchmark.growth_plot import draw_growth
from jaxseg.preflight import Room
from tests.tiny_benchmark import benchmark, tiny_run


@pytest.fixture(scope="module")
def run():
    return tiny_run()


def test_growth_of_a_model_too_deep_for_its_smallest_images_is_refused_at_once(capsys):
    deep = ("--config.model.depth=8", "--config.dataset.image_size=(256,256)")
    status, printed = benchmark(capsys, "--what=forward,growth", *deep)
    assert status == 2
    assert "which model.depth=8 is too deep for; use --config.model.depth=7 or less" in printed
    assert "forward" not in printed, "nothing was measured before"


def test_growth_has_time_and_memory_of_every_point(run, monkeypatch, tmp_path):
    series = [
        growth.Series("image size", "pixels", [growth.Point(16, 2, 4), growth.Point(32, 2, 4)]),
        growth.Series("classes, Lovász", "classes", [growth.Point(16, 2, 4, work="lovasz")]),
        growth.Series("occlusion", "pixels", [growth.Point(16, 2, 4, work="occlusion regions")]),
    ]
    monkeypatch.setattr(growth, "all_series", lambda base: series)
    grown = growth.measure_growth(run, options.Options(("growth",), rounds=1))
    for table in grown.figures["series"]:
        for point in table["points"]:
            assert point["memory"] > 0 and point["images_per_s"] == point["batch"] / point["seconds"]
    # Four times the pixels; the parameters are few.
    assert 0.6 < grown.figures["series"][0]["exponents"]["memory"] < 1.1
    assert max(map(len, grown.lines)) <= 110
    draw_growth(grown.figures["series"], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_left_out_is_said(run, monkeypatch):
    late = growth.measure_growth(run, options.Options(("growth",), budget=-1.0))
    assert any("left out: --budget=-1 was used up" in line for line in late.lines)
    monkeypatch.setattr(growth, "device_room", lambda devices: Room(1000, "here"))
    cost = growth._cost(run.experiment, growth.Point(16, 2, 4), options.Options(()))
    assert cost.seconds is None and "0.00 MiB are free" in cost.left_out


def test_the_smallest_points_are_taken_first(run, monkeypatch):
    taken = []
    monkeypatch.setattr(growth, "_cost", lambda experiment, point, _: taken.append(point) or growth.Cost(1.0))
    growth.measure_growth(run, options.Options(()))
    efforts = [point.effort for point in taken]
    assert efforts == sorted(efforts) and len(taken) == len(set(taken))
    assert {point.size for point in taken} == {128, 256, 512, 1024}
    assert {point.classes for point in taken} == {7, 19, 50, 150}


def test_more_than_linear_growth_is_flagged():
    base = growth.Point(128, 2, 16)
    points = [growth.dataclasses.replace(base, size=size) for size in (128, 256, 512)]
    costs = {p: growth.Cost(seconds=p.pixels**1.5, memory=p.pixels) for p in points}
    costs[points[2]] = growth.Cost(memory=points[2].pixels, left_out="no time")
    table = growth._figures(growth.Series("image size", "pixels", points), costs)
    assert table["exponents"] == {"time": pytest.approx(1.5), "memory": pytest.approx(1.0)}
    assert table["worse_than_linear"] == ["time"]
    assert growth._lines(table)[1:3] == [
        "image size: time ~ pixels^1.50, memory ~ pixels^1.00",
        "  the last two: time ^1.50, memory ^1.00  <- time: worse than linear",
    ]
    allowed = growth._figures(growth.Series("width", "pixels", points, linear=False), costs)
    assert allowed["worse_than_linear"] == []
    assert growth.exponent([1.0, 2.0], [3.0, None]) is None


def test_what_grows_faster_at_its_end_alone_is_flagged():
    base = growth.Point(128, 2, 16)
    points = [growth.dataclasses.replace(base, size=size) for size in (128, 256, 512, 1024)]
    costs = {
        p: growth.Cost(seconds=s, memory=m)
        for p, s, m in zip(points, (1, 1, 1, 6), (1, 4, 16, 64), strict=True)
    }
    table = growth._figures(growth.Series("image size", "pixels", points), costs)
    assert table["exponents"]["time"] < 1 < table["last_exponents"]["time"] == pytest.approx(math.log(6, 4))
    assert table["worse_than_linear"] == ["time"]
    assert "time ^1.29, memory ^1.00  <- time: worse" in growth._lines(table)[2]
    assert growth.last_exponent([1.0, 2.0], [None, None]) is None


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("sides.on_device", RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate 4 bytes")),
        ("_train_step", MemoryError("Unable to allocate 3 GiB")),
        ("_seconds", RuntimeError("Out of memory while trying to allocate")),
    ],
)
def test_a_point_that_runs_out_of_memory_is_left_out(run, monkeypatch, where, error):
    """On a device as well as on the host: while the state is made or placed, compiled, or run."""

    def ends(*_):
        raise error

    monkeypatch.setattr(f"jaxseg.benchmark.growth.{where}", ends)
    cost = growth._cost(run.experiment, growth.Point(16, 2, 4), options.Options(()))
    assert cost.seconds is None and cost.left_out == f"out of memory ({error})"
    assert (cost.memory is None) == (where != "_seconds")
    monkeypatch.setattr(f"jaxseg.benchmark.growth.{where}", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        growth._cost(run.experiment, growth.Point(16, 2, 4), options.Options(()))
