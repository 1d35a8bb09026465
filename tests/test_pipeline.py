"""The loader: batch n is a function of n, whatever reads it."""

import numpy as np
import pytest

from jaxseg.data.pipeline import Reading, eval_batches, example_key, to_device, train_batches
from jaxseg.types import IGNORE_LABEL, Batch


class Records:
    """Ten tiny examples, with void in a corner."""

    def __len__(self):
        return 10

    def __getitem__(self, i):
        label = np.full((8, 8), i % 7, np.uint8)
        label[0, 0] = IGNORE_LABEL
        return {
            "image": np.full((8, 8, 3), i, np.uint8),
            "label": label,
            "boxes": np.zeros((16, 4), np.int32),
            "example_id": i,
        }


def taken(count, *, start=0, seed=0, workers=0, batch_size=4, void_class=None, share=(0, 1)):
    stream = train_batches(
        Records(),
        batch_size=batch_size,
        seed=seed,
        start_step=start,
        void_class=void_class,
        reading=Reading(workers, 2, 2),
        share=share,
    )
    return [batch for _, batch in zip(range(count), stream, strict=False)]


def same(a, b):
    return len(a) == len(b) and all(
        (x == y).all() for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_each_epoch_is_a_new_permutation_of_all_examples():
    ids = np.concatenate([b.example_id for b in taken(5)])
    assert sorted(ids[:10]) == list(range(10)) and sorted(ids[10:]) == list(range(10))
    assert list(ids[:10]) != list(ids[10:])


def test_seeds_differ():
    assert not same(taken(3, seed=0), taken(3, seed=1))


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_at_a_step_gives_what_the_whole_stream_gives_there(start):
    whole = taken(9)
    assert same(taken(9 - start, start=start), whole[start:])
    assert not same(taken(9 - start, start=start - 1), whole[start:]), "one step off must show"


def test_two_workers_read_what_none_reads():
    alone, workers = taken(6), taken(6, workers=2)
    assert same(alone, workers)
    workers[3].key[0, 0] ^= 1
    assert not same(alone, workers)


def test_keys_belong_to_examples_not_to_batches():
    fours, fives = taken(5, batch_size=4), taken(4, batch_size=5)

    def keys(batches):
        ids = np.concatenate([b.example_id for b in batches])
        return list(zip(ids.tolist(), np.concatenate([b.key for b in batches]).tolist(), strict=True))

    assert keys(fours) == keys(fives)
    assert keys(fours)[0][1] == example_key(0, 0, keys(fours)[0][0]).tolist()
    assert len({tuple(k) for _, k in keys(fours)}) == 20


def test_void_policy_is_applied_when_loading():
    assert all((b.label[:, 0, 0] == IGNORE_LABEL).all() for b in taken(2))
    assert all((b.label[:, 0, 0] == 0).all() for b in taken(2, void_class=0))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_evaluation_sees_each_example_once_and_padding_counts_nowhere(batch_size):
    batches = list(eval_batches(Records(), batch_size=batch_size, void_class=0, reading=Reading()))
    assert all(len(b.label) == batch_size for b in batches)
    ids = np.concatenate([b.example_id for b in batches])
    assert ids[ids >= 0].tolist() == list(range(10))
    for b in batches:
        assert (b.label[b.example_id < 0] == IGNORE_LABEL).all()


def test_device_batches_come_in_order_and_all_of_them():
    def augment(image, label, boxes, key, example_id):
        return Batch(image=image, label=label, occlusion=label, example_id=example_id)

    batches = eval_batches(Records(), batch_size=3, void_class=None, reading=Reading())
    out = list(to_device(batches, place=lambda b: b, augment=augment))
    assert [b.example_id[0] for b in out] == [0, 3, 6, 9]


def test_the_next_batch_is_on_its_way_while_one_is_used():
    sent = []

    def augment(image, label, boxes, key, example_id):
        sent.append(int(example_id[0]))
        return Batch(image=image, label=label, occlusion=label, example_id=example_id)

    batches = eval_batches(Records(), batch_size=3, void_class=None, reading=Reading())
    stream = to_device(batches, place=lambda b: b, augment=augment)
    used = []
    for batch in stream:
        used.append((int(batch.example_id[0]), list(sent)))
    assert used == [(0, [0, 3]), (3, [0, 3, 6]), (6, [0, 3, 6, 9]), (9, [0, 3, 6, 9])]


def joined(shares):
    """Batches of the parts that processes read, side by side."""
    return [
        type(parts[0])(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        for parts in zip(*shares, strict=True)
    ]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_processes_read_the_parts_of_the_batches_of_one(parts, start):
    shares = [taken(5, start=start, share=(i, parts)) for i in range(parts)]
    assert same(joined(shares), taken(5, start=start))
    assert not same(joined(shares[::-1]), taken(5, start=start)), "another order must show"


def test_a_process_reads_no_example_of_another():
    class Watched(Records):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    read = []
    reading = Reading(0, 1, 1)
    more = {"batch_size": 10, "seed": 0, "start_step": 0, "void_class": None, "reading": reading}
    first = next(train_batches(Watched(), share=(0, 5), **more))
    # Grain reads ahead: of the first two epochs at most a fifth each.
    assert len(first.label) == 2 and len(read) <= 2 * 3


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 12])
def test_processes_score_the_parts_of_the_batches_of_one(parts, batch_size):
    def scored(share):
        more = {"batch_size": batch_size, "void_class": None, "reading": Reading(0, 2, 2)}
        return list(eval_batches(Records(), share=share, **more))

    assert same(joined([scored((i, parts)) for i in range(parts)]), scored((0, 1)))
