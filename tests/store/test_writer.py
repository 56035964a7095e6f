from limbeck.store.writer import Failures


def line(shard: int, row: str) -> dict:
    return {"shard": shard, "row": row, "reason": "zu groß"}


def test_lines_of_shards_that_are_not_there_are_taken_away(tmp_path):
    path = tmp_path / "failed.jsonl"
    failures = Failures.open(path)
    failures.add([])
    assert not path.exists()
    failures.add([line(0, "a"), line(0, "b")])
    failures.add([line(2, "c")])
    with path.open("a") as file:
        file.write('{"shard": 3, "ro')  # a kill
    again = Failures.open(path)
    assert again.lines == [line(0, "a"), line(0, "b"), line(2, "c")] and again.shards() == {0, 2}
    again.keep({0})
    again.add([line(1, "d")])
    assert Failures.open(path).lines == [line(0, "a"), line(0, "b"), line(1, "d")]
    assert path.read_text().count("\n") == 3
