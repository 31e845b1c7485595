"""The index of what may start: many chunks of a task come in at once, and are then like any others."""

from renderonline.farm.ready import Bucket, ReadyIndex, ReadyTask, Shape, Signature

UNCUT, PIECE = Signature("blender", Shape.UNCUT), Signature("blender", Shape.PIECE)


def order(index: ReadyIndex) -> list[tuple[Signature, int]]:
    """The chunks of task 1 as they would go."""
    found = []
    for signature in index.signatures_of(1):
        for _, users in index.classes(signature):
            for bucket in users[7].values():
                found += [(signature, chunk.chunk_id) for chunk in reversed(bucket.chunks)]
    return found


def test_a_bucket_made_elsewhere_is_as_if_its_chunks_had_been_added() -> None:
    places = [(100 + place, place) for place in (3, 1, 2, 0)]
    task, one, other = ReadyTask(1, 7, 50, 1000), ReadyIndex(), ReadyIndex()
    one.add_many(task, places, UNCUT)
    other.add_bucket(Bucket.of(task, places, PIECE), UNCUT)
    for index in (one, other):
        assert len(index) == 4
        assert index.remove(101)
        assert not index.remove(101)
        index.begun(1)
        index.add(task, 101, 1, PIECE)
        assert order(index) == [(PIECE, 100), (PIECE, 101), (PIECE, 102), (PIECE, 103)]
        index.remove_task(1)
        assert (len(index), index.signatures_of(1)) == (0, ())


def test_a_bucket_without_chunks_leaves_nothing() -> None:
    index = ReadyIndex()
    index.add_bucket(Bucket.of(ReadyTask(1, 7, 50, 1000), (), UNCUT), UNCUT)
    assert index.signatures_of(1) == ()
