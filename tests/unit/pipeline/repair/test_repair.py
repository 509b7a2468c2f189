from __future__ import annotations

import random
import threading

import pytest

from pipeline.errors import CancelledError
from pipeline.repair import PointSource, repair
from pipeline.repository.format import BlobKind
from pipeline.testing.builders import ManualClock
from tests.support.copies import Pair, make_pair, noise

BLOCKS = 60


@pytest.fixture(params=[4096, 16384])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Three points of a disk, all copied, in a repository of equal and one of larger blocks."""
    return three_points(make_pair(theirs=request.param))


def three_points(pair: Pair, blocks: int = BLOCKS) -> Pair:
    image = noise(1, blocks)
    for day in range(3):
        image[day * 40_000 : day * 40_000 + 9000] = random.Random(day + 50).randbytes(9000)
        for block in (40, 43, 46, 49, 52):  # small changes, which are stored as patches
            at = block * 4096 + day * 512
            image[at : at + 300] = random.Random(day + block).randbytes(300)
        pair.back_up(image)
        pair.copy()
    return pair


def copy_of(pair: Pair) -> PointSource:
    return PointSource("offsite", pair.target.repository)


def test_a_sound_repository_is_left_alone(pair: Pair) -> None:
    before = dict(pair.storage.objects)
    report = repair(pair.source.repository, [copy_of(pair)])
    assert (report.damage, report.lost, report.repaired_blobs, report.problems) == ((), (), 0, ())
    assert report.read_bytes > 0
    assert pair.storage.objects == before


@pytest.mark.parametrize("kind", [BlobKind.BLOCK, BlobKind.NODE])
def test_a_flipped_bit_is_mended_from_the_copy(pair: Pair, kind: BlobKind) -> None:
    pair.damage_blob(kind, random.Random(3))
    assert pair.source.problems()
    report = repair(pair.source.repository, [copy_of(pair)])
    # One, and patches that build on it.
    assert report.damage
    assert set(report.repaired_from) == {"offsite"}
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_lost_packs_are_mended_from_the_copy(pair: Pair) -> None:
    names = pair.packs()
    del pair.storage.objects[names[0]]
    pair.storage.objects[names[1]] = pair.storage.objects[names[1]][:5000]
    report = repair(pair.source.repository, [copy_of(pair)])
    assert report.damaged_packs >= 2  # patches whose bases are gone count as damaged, too
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_everything_is_mended_from_the_copy(pair: Pair) -> None:
    """Not one pack is left, the maps neither."""
    for name in pair.packs():
        del pair.storage.objects[name]
    report = repair(pair.source.repository, [copy_of(pair)])
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_pack_with_a_damaged_footer_is_replaced_without_a_source(pair: Pair) -> None:
    name = pair.packs()[0]
    pair.flip(name, len(pair.storage.objects[name]) - 40)
    assert pair.source.problems()
    report = repair(pair.source.repository)
    assert (report.damaged_packs, report.damaged_blobs) == (1, 0)
    assert report.moved_blobs > 0
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_what_no_source_has_is_named_and_the_rest_is_saved(pair: Pair) -> None:
    name, entry = next(place for place in pair.places(BlobKind.BLOCK))
    pair.flip(name, entry.offset + 100)
    report = repair(pair.source.repository)
    assert report.repaired_blobs == 0
    assert {lost.point_id for lost in report.lost} <= {point.id for point, _ in pair.points}
    assert report.lost
    lost = report.lost[0]
    assert lost.end_bytes - lost.start_bytes == 4096
    assert f"guest extent {lost.start_bytes}-{lost.end_bytes} cannot be restored" in str(lost)
    assert lost.vm_name in str(lost)
    # Nothing but the lost extents is wrong now, and those are named in the check's own words.
    problems = pair.source.problems()
    assert len(problems) == len(report.lost)
    assert all("guest extent" in problem for problem in problems)


def test_the_next_backup_of_the_same_content_makes_old_points_whole(pair: Pair) -> None:
    """The live disk repairs: the index does not know the lost blob, so its content is stored again."""
    name, entry = pair.places(BlobKind.BLOCK)[-1]
    pair.flip(name, entry.offset + 100)
    assert repair(pair.source.repository).lost
    pair.source.backup(pair.points[-1][1])
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_second_place_in_the_same_repository_is_enough(pair: Pair) -> None:
    """Two writers at the same time may both have stored a block."""
    image = pair.points[-1][1]
    other = pair.source.on(pair.storage)
    hidden = {name: data for name, data in pair.storage.objects.items() if name.startswith("index/")}
    for name in hidden:
        del pair.storage.objects[name]
    other.backup(image)
    pair.storage.objects.update(hidden)
    ids = [entry.blob_id for _, entry in pair.places(BlobKind.BLOCK)]
    name, entry = next(
        place for place in pair.places(BlobKind.BLOCK) if ids.count(place[1].blob_id) == 2
    )
    pair.flip(name, entry.offset + 100)
    report = repair(pair.source.repository)
    assert (report.damaged_blobs, report.repaired_blobs, report.lost) == (1, 0, ())
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_source_that_is_wrong_does_no_harm(pair: Pair) -> None:
    stranger = make_pair()
    stranger.back_up(noise(99, BLOCKS))
    pair.damage_blob(BlobKind.BLOCK, random.Random(5))
    wrong = PointSource("stranger", stranger.source.repository)
    report = repair(pair.source.repository, [wrong])
    assert report.repaired_blobs == 0
    assert report.lost
    assert "stranger has it not" in report.lost[0].reason


def test_the_original_mends_its_copy() -> None:
    pair = three_points(make_pair())
    turned = Pair(pair.target, pair.source)
    turned.points = [(c, i) for c, (_, i) in zip(pair.copies, pair.points, strict=True)]
    turned.damage_blob(BlobKind.BLOCK, random.Random(1))
    report = repair(turned.source.repository, [PointSource("main", pair.source.repository)])
    # One, and patches that build on it.
    assert set(report.repaired_from) == {"main"}
    assert turned.is_whole()


def test_a_trial_run_writes_nothing_and_says_the_same(pair: Pair) -> None:
    for seed in range(3):
        pair.damage_blob(BlobKind.BLOCK, random.Random(seed))
    before = dict(pair.storage.objects)
    trial = repair(pair.source.repository, [copy_of(pair)], dry_run=True)
    assert pair.storage.objects == before
    done = repair(pair.source.repository, [copy_of(pair)])
    assert (trial.repaired_blobs, trial.damage, trial.lost) == (done.repaired_blobs, done.damage, ())


def test_nodes_of_a_large_disk_are_made_anew() -> None:
    pair = three_points(make_pair(pack_target_bytes=1 << 20), blocks=1500)
    for name, entry in pair.places(BlobKind.NODE):
        pair.flip(name, entry.offset + 90)
    report = repair(pair.source.repository, [copy_of(pair)])
    assert report.repaired_blobs >= 4
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_lost_node_is_one_extent_when_no_source_has_it() -> None:
    pair = three_points(make_pair())
    for name, entry in pair.places(BlobKind.NODE):
        pair.flip(name, entry.offset + 90)
    report = repair(pair.source.repository)
    assert [(lost.start_bytes, lost.end_bytes) for lost in report.lost] == [
        (0, len(image)) for _, image in pair.points
    ]
    assert "map node" in report.lost[0].reason


def test_prune_then_deletes_what_was_damaged(pair: Pair) -> None:
    clock = pair.source.clock
    assert isinstance(clock, ManualClock)
    name, entry = pair.places(BlobKind.BLOCK)[0]
    pair.flip(name, entry.offset + 100)
    repair(pair.source.repository, [copy_of(pair)])
    for _ in range(2):
        clock.now_s += 10_000
        pair.source.repository.prune(keep_work_ids=(), min_age_s=60)
    assert name not in pair.storage.objects
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_cancelled_it_changes_nothing_that_counts(pair: Pair) -> None:
    pair.damage_blob(BlobKind.BLOCK, random.Random(2))
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(CancelledError):
        repair(pair.source.repository, [copy_of(pair)], cancel=cancel)
    assert repair(pair.source.repository, [copy_of(pair)]).lost == ()


def test_a_restore_point_that_cannot_be_read_is_named(pair: Pair) -> None:
    name = next(name for name in pair.storage.objects if name.startswith("points/"))
    pair.flip(name, 200)
    report = repair(pair.source.repository, [copy_of(pair)])
    assert len(report.problems) == 1
    assert name in report.problems[0]


def test_patches_are_mended_whatever_is_damaged_of_them(pair: Pair) -> None:
    patches = [place for place in pair.places(BlobKind.BLOCK) if place[1].base_id]
    assert patches, "the chain holds no patch"
    name, entry = patches[0]
    bases = [place for place in pair.places(BlobKind.BLOCK) if place[1].blob_id == entry.base_id]
    for damaged_name, damaged in [*bases, (name, entry)]:
        pair.flip(damaged_name, damaged.offset + damaged.length - 3)
    report = repair(pair.source.repository, [copy_of(pair)])
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_sound_patch_of_a_lost_base_comes_from_the_copy(pair: Pair) -> None:
    _, patch = next(place for place in pair.places(BlobKind.BLOCK) if place[1].base_id)
    for name, entry in pair.places(BlobKind.BLOCK):
        if entry.blob_id == patch.base_id:
            pair.flip(name, entry.offset + entry.length - 3)
    report = repair(pair.source.repository, [copy_of(pair)])
    assert report.repaired_blobs >= 2
    assert report.lost == ()
    assert pair.source.problems() == ()
    assert pair.is_whole()


def test_a_damaged_index_object_is_made_anew_from_the_packs(pair: Pair) -> None:
    name = next(name for name in pair.storage.objects if name.startswith("index/"))
    pair.flip(name, 200)
    fresh = pair.source.on(pair.storage)
    trial = repair(fresh.repository, dry_run=True)
    assert name in trial.damage[0]
    report = repair(fresh.repository)
    assert name in report.damage[0]
    assert (report.lost, report.problems) == ((), ())
    fresh = pair.source.on(pair.storage)
    assert fresh.problems() == ()
    assert pair.is_whole(fresh)
