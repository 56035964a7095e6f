"""Digests of large files, taken once."""

import os

from limbeck.system import hashes
from limbeck.system.atomic import sha256_file
from limbeck.system.hashes import FileHashes


def test_a_file_is_hashed_once_and_again_when_it_was_written(tmp_path, monkeypatch):
    file, cache = tmp_path / "weights", tmp_path / "run" / "hashes.json"
    file.write_bytes(b"one")
    hashed: list[str] = []
    monkeypatch.setattr(hashes, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path))
    first = FileHashes.open(cache).of(file)
    assert FileHashes.open(cache).of(file) == first == sha256_file(file) and hashed == ["weights"]
    times = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` does
    assert FileHashes.open(cache).of(file) == sha256_file(file) != first and len(hashed) == 2
    other = tmp_path / "other"
    other.write_bytes(b"six")
    os.replace(other, file)
    assert FileHashes.open(cache).of(file) == sha256_file(file) and len(hashed) == 3


def test_a_damaged_cache_is_made_anew(tmp_path):
    file, cache = tmp_path / "weights", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    digest = FileHashes.open(cache).of(file)
    for text in ("{", "[]", cache.read_text().replace(digest, "0" * 64)):
        cache.write_text(text)
        assert FileHashes.open(cache).of(file) == digest
