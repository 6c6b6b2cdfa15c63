"""How batches are drawn: coverage, class match, independence, determinism, shares of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ucmkd_fast.data import FeatureBank, TensorData, UnpairedLoader
from ucmkd_fast.data.labelled import LabelledData


def numbered(samples: int, classes: int = 5, offset: int = 0) -> TensorData:
    """Sample i holds i + offset; labels go round."""
    y = torch.arange(samples) % classes
    return TensorData(torch.arange(float(samples))[:, None] + offset, y, [str(k) for k in range(classes)])


STUDENT, TEACHER, EXTRA = numbered(53), numbered(37, offset=1000), numbered(41, offset=2000)


def ids(x: torch.Tensor) -> list[int]:
    return x.flatten().long().tolist()


def epoch_of(loader: UnpairedLoader, epoch: int = 0) -> list:
    loader.set_epoch(epoch)
    return list(loader)


def same(a, b) -> bool:
    return all(
        (p is None and q is None) or torch.equal(p, q)
        for p, q in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def test_an_epoch_is_one_pass_filled_up_from_the_next():
    loader = UnpairedLoader(STUDENT, TEACHER, batch_size=8)
    batches = epoch_of(loader)
    assert len(batches) == len(loader) == 7 and all(len(b.y) == 8 for b in batches)
    seen = [i for b in batches for i in ids(b.x)]
    assert sorted(seen[:53]) == list(range(53)) and len(set(seen[53:])) == 3
    assert ids(batches[0].x) != ids(epoch_of(loader, 1)[0].x)


def test_drop_last_leaves_out_what_does_not_fill_a_batch():
    batches = epoch_of(UnpairedLoader(STUDENT, batch_size=8, drop_last=True))
    seen = [i for b in batches for i in ids(b.x)]
    assert len(batches) == 6 and len(set(seen)) == 48


def test_steps_per_epoch_go_on_over_passes():
    few = numbered(10)
    loader = UnpairedLoader(few, batch_size=4, steps_per_epoch=25)
    seen = [i for b in epoch_of(loader) for i in ids(b.x)]
    assert len(loader) == 25 and set(Counter(seen).values()) == {10}
    assert all(sorted(seen[p : p + 10]) == list(range(10)) for p in range(0, 100, 10))
    assert seen[:10] != seen[10:20]


def test_a_set_smaller_than_its_batch_is_a_whole_batch():
    loader = UnpairedLoader(numbered(6), TEACHER, batch_size=16, steps_per_epoch=3)
    assert loader.batch_size == 6 and loader.teacher_batch_size == 16
    for batch in loader:
        assert sorted(ids(batch.x)) == list(range(6)) and len(batch.teacher_y) == 16


def test_samples_go_with_their_own_labels():
    loader = UnpairedLoader(STUDENT, TEACHER, batch_size=16, teacher_batch_size=9, unlabelled=EXTRA)
    for batch in loader:
        assert torch.equal(batch.x.flatten().long() % 5, batch.y)
        assert torch.equal((batch.teacher_x.flatten().long() - 1000) % 5, batch.teacher_y)
        assert len(batch.teacher_y) == 9 and batch.teacher_feature is None
        assert batch.unlabelled_x.shape == (16, 1) and batch.unlabelled_x.min() >= 2000


def test_the_teachers_and_the_unlabelled_samples_come_in_passes_too():
    loader = UnpairedLoader(STUDENT, TEACHER, batch_size=8, unlabelled=EXTRA, unlabelled_batch_size=6)
    batches = epoch_of(loader)
    assert sorted([i - 1000 for b in batches for i in ids(b.teacher_x)][:37]) == list(range(37))
    assert sorted([i - 2000 for b in batches for i in ids(b.unlabelled_x)][:41]) == list(range(41))


def test_an_independent_draw_matches_classes_by_chance_alone():
    loader = UnpairedLoader(numbered(500), numbered(500), batch_size=50, steps_per_epoch=200, seed=3)
    hits = torch.cat([b.y == b.teacher_y for b in loader]).float().mean()
    same_index = torch.cat([b.x == b.teacher_x for b in loader]).float().mean()
    assert abs(float(hits) - 0.2) < 0.02  # 10,000 draws: five standard errors
    assert float(same_index) < 0.01


def test_a_class_matched_draw_matches_every_class_and_reaches_every_teacher_sample():
    loader = UnpairedLoader(STUDENT, TEACHER, batch_size=25, draw="class-matched", steps_per_epoch=40)
    drawn = Counter()
    for batch in loader:
        assert torch.equal(batch.y, batch.teacher_y)
        drawn.update(ids(batch.teacher_x))
    assert len(drawn) == 37
    expected = 1000 / 37
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 90  # chi-square, 36 degrees


def test_a_class_matched_draw_is_not_the_same_sample_each_time():
    loader = UnpairedLoader(STUDENT, TEACHER, batch_size=53, draw="class-matched", steps_per_epoch=2)
    partner = [dict(zip(ids(b.x), ids(b.teacher_x), strict=True)) for b in loader]
    assert sum(partner[0][i] != partner[1][i] for i in range(53)) > 25


def test_a_paired_draw_takes_the_same_index():
    loader = UnpairedLoader(STUDENT, numbered(53, offset=1000), batch_size=8, draw="paired")
    for batch in loader:
        assert torch.equal(batch.x + 1000, batch.teacher_x)


@pytest.mark.parametrize("draw", ["independent", "class-matched"])
def test_batches_are_a_function_of_seed_epoch_and_step(draw):
    def make(seed=4):
        return UnpairedLoader(STUDENT, TEACHER, batch_size=8, draw=draw, seed=seed, unlabelled=EXTRA)

    first, second = make(), make()
    torch.manual_seed(99)  # the global generator has no part in it
    epochs = [epoch_of(first, e) for e in range(3)]
    assert all(same(second.batch_at(2, s), epochs[2][s]) for s in (6, 3, 0, 5))  # any order, no history
    assert all(same(a, b) for a, b in zip(epochs[1], epoch_of(second, 1), strict=True))
    assert not same(make(seed=5).batch_at(0, 0), first.batch_at(0, 0))


@pytest.mark.parametrize("draw", ["independent", "class-matched", "paired"])
@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_processes_are_the_whole_batch(draw, world):
    teacher = numbered(53, offset=1000) if draw == "paired" else TEACHER

    def make(**where):
        return UnpairedLoader(
            STUDENT, teacher, batch_size=12, draw=draw, unlabelled=EXTRA, unlabelled_batch_size=8, **where
        )

    whole = epoch_of(make(), 1)
    shares = [epoch_of(make(rank=r, world_size=world), 1) for r in range(world)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert all(len(p.y) == 12 // world for p in parts)
        for name in ("x", "y", "teacher_x", "teacher_y", "unlabelled_x"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))


def test_features_of_a_bank_are_handed_on_as_features():
    bank = FeatureBank(torch.randn(37, 4), TEACHER.labels, TEACHER.classes)
    batch = next(iter(UnpairedLoader(STUDENT, bank, batch_size=8, draw="class-matched")))
    assert batch.teacher_x is None and batch.teacher_feature.shape == (8, 4)
    assert torch.equal(batch.teacher_y, batch.y)


def test_data_that_read_their_samples_serve_as_well():
    class Lazy(LabelledData):
        labels, classes = STUDENT.labels, STUDENT.classes

        def __getitem__(self, index):
            return STUDENT[index]

    lazy, memory = (UnpairedLoader(d, TEACHER, batch_size=8, seed=1) for d in (Lazy(), STUDENT))
    assert all(same(a, b) for a, b in zip(lazy, memory, strict=True))


def relabelled(labels, classes):
    labels = torch.tensor(labels)
    return TensorData(torch.zeros(len(labels), 1), labels, classes)


@pytest.mark.parametrize(
    ("teacher", "options", "says"),
    [
        (TEACHER, {"draw": "random"}, "draw must be one of"),
        (TEACHER, {"batch_size": 0}, "batch_size must be an integer >= 1"),
        (TEACHER, {"teacher_batch_size": -3}, "teacher_batch_size must be an integer >= 1"),
        (TEACHER, {"teacher_batch_size": 0}, "teacher_batch_size must be an integer >= 1"),
        (TEACHER, {"steps_per_epoch": 0}, "steps_per_epoch must be an integer >= 1"),
        (TEACHER, {"steps_per_epoch": 5, "drop_last": True}, "drop_last must be False"),
        (TEACHER, {"seed": -1}, "seed must be an integer >= 0"),
        (TEACHER, {"rank": 2, "world_size": 2}, "rank 2 of 2"),
        (TEACHER, {"batch_size": 9, "world_size": 2}, "multiple of 2"),
        (numbered(7), {"batch_size": 8, "world_size": 2}, "teacher_batch_size .* it is 7"),
        (TEACHER, {"draw": "class-matched", "teacher_batch_size": 16}, "must be batch_size=8, got 16"),
        (relabelled([0, 1, 2, 4], list("01234")), {"draw": "class-matched"}, "no sample of class '3'"),
        (relabelled([0, 1], ["0", "1"]), {"draw": "class-matched"}, "no sample of class '2', '3', '4'"),
        (relabelled([0, 1], ["0", "one"]), {}, "only the student has '1', .*; only the teacher has 'one'"),
        (TEACHER, {"draw": "paired"}, "53 of the student and 37 of the teacher"),
        (STUDENT.with_labels(STUDENT.labels.roll(1)), {"draw": "paired"}, "index 0 is of class 0 and 2"),
        (None, {"draw": "class-matched"}, "need teacher_data"),
        (None, {"teacher_batch_size": 8}, "need teacher_data"),
        (TEACHER, {"unlabelled_batch_size": 8}, "needs unlabelled data"),
    ],
)
def test_draws_that_cannot_be_are_refused(teacher, options, says):
    with pytest.raises(ValueError, match=says):
        UnpairedLoader(STUDENT, teacher, **{"batch_size": 8, **options})


def test_wrong_types_and_missing_labels_are_refused():
    with pytest.raises(TypeError, match="batch_size must be an integer"):
        UnpairedLoader(STUDENT, TEACHER, batch_size=8.0)
    with pytest.raises(ValueError, match="needs a label for every sample"):
        UnpairedLoader(TensorData(torch.zeros(3, 1)), TEACHER, batch_size=2, draw="class-matched")
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        UnpairedLoader(STUDENT, TEACHER, batch_size=8).set_epoch(-1)
