"""Warnings come when something is wrong, and not otherwise."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxseg.best import Best, best_of
from jaxseg.health import has_not_moved, label_warnings, never_predicted
from jaxseg.loop import Loop

NAMES = ("road", "person")


def test_labels_of_one_class_are_said():
    assert label_warnings(NAMES, (90, 10), "train") == []
    assert label_warnings(NAMES, (998, 2), "train") == []
    (said,) = label_warnings(NAMES, (1, 9999), "val")
    assert "99.99% of the labelled pixels of val are person" in said


def test_a_class_that_is_never_predicted_is_named():
    assert never_predicted(NAMES, np.array([[5, 1], [3, 0]])) == []
    assert never_predicted(NAMES, np.array([[5, 0], [3, 0]])) == ["person"]
    assert never_predicted(NAMES, np.array([[5, 0], [0, 0]])) == [], "there is none to find"


@pytest.mark.parametrize(
    ("losses", "stuck"),
    [
        ([1.0, 1.0, 1.0], True),
        ([1.0, 1.0005, 0.9995, 0.2], True),
        ([1.0, 1.0, 0.99], False),
        ([1.0, 1.0], False),
        ([1.0, None, 1.0], False),
        ([], False),
    ],
)
def test_a_loss_that_does_not_move(losses, stuck):
    assert has_not_moved(losses) is stuck


@pytest.mark.parametrize(
    ("mious", "total_steps", "patience", "count"),
    [
        ((0.0, 0.5), 100, 0, 0),
        ((0.0, 0.5, 0.4), 100, 0, 2),
        ((0.0, 0.5, 0.4, 0.3), 100, 0, 0),
        ((0.0, 0.5, 0.4, 0.3), 100, 2, 1),
        ((0.0, 0.5, 0.4, 0.3), 30, 0, 1),
    ],
    ids=["too soon", "the third evaluation", "said before", "patience is over", "the last step"],
)
def test_a_run_that_learns_nothing_is_told(mious, total_steps, patience, count):
    """Of a class that is never predicted twice at most, of a loss that does not move once."""
    told = []
    loop = object.__new__(Loop)
    experiment = SimpleNamespace(evaluate=SimpleNamespace(patience=patience))
    classes = SimpleNamespace(names=NAMES)
    loop.run = SimpleNamespace(classes=classes, experiment=experiment, total_steps=total_steps)
    loop.log = SimpleNamespace(evaluations=lambda: [{**row, "loss": 1.0} for row in rows(*mious)])
    loop.step = rows(*mious)[-1]["step"]
    loop._warn(SimpleNamespace(write=told.append), np.array([[5, 0], [3, 0]]))
    assert len(told) == count, told
    assert all(line.startswith("Warning: ") for line in told)
    assert not told or "is predicted as person" in told[0]
    assert count < 2 or "the loss on val has hardly moved in 3 evaluations" in told[1]


def rows(*mious):
    return [{"split": "val", "step": 10 * i, "miou": m} for i, m in enumerate(mious)]


def test_the_best_is_read_from_the_log():
    assert best_of([]) == Best()
    assert best_of(rows(0.9)) == Best(), "step 0 is the parent's"
    assert best_of(rows(0.9, 0.5, 0.7, 0.6)) == Best(20, 0.7, stale=1)
    assert best_of(rows(0.9, 0.5, 0.7, 0.7)) == Best(30, 0.7, stale=0), "a tie goes to the later one"
    assert best_of(rows(0.9, None, None)) == Best(20, None, stale=0)
    assert best_of(rows(0.9, 0.1, None)) == Best(10, 0.1, stale=1)
    assert best_of([{"split": "train", "step": 5, "loss": 1.0}, *rows(0.9, 0.5)]).step == 10


@pytest.mark.parametrize(
    ("stale", "patience", "over"), [(3, 0, False), (1, 2, False), (2, 2, True), (3, 2, True)]
)
def test_patience(stale, patience, over):
    assert Best(10, 0.5, stale).patience_is_over(patience) is over
