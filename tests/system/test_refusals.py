"""What a machine refuses, in every library's words, becomes an error of ours with its exit code and what to do."""

import errno
import multiprocessing
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import BudgetError, DataError, LimbeckError, RecipeError, RunDirError, StoreError
from limbeck.system import atomic
from limbeck.system.atomic import atomic_dir, atomic_path, atomic_write, fsync_dir
from limbeck.system.jsonl import LineFile, append_durably
from limbeck.system.refusals import disk_errors, machine_error, machine_errors, os_error, out_of_memory
from tests import tiny

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["tests.system.test_refusals"])


def of(number: int, name: str | None = "/x/file") -> OSError:
    return OSError(number, os.strerror(number), name)


class Panic(BaseException):
    """As Rust's panics come out of tokenizers."""


# error, our class, words that must be in it
TABLE = [
    (of(errno.ENOSPC), BudgetError, "the disk is full"),
    (of(errno.EDQUOT), BudgetError, "the disk is full"),
    (of(errno.EFBIG), BudgetError, "the disk is full"),
    (Exception("No space left on device (os error 28)"), BudgetError, "the disk is full"),
    (OSError("1000 requested and 3 written"), BudgetError, "the disk is full"),
    (of(errno.EIO), RunDirError, "/x/file cannot be read or written"),
    (of(errno.EROFS), RunDirError, "Look at the disk"),
    (of(errno.EACCES), RunDirError, "permissions"),
    (of(errno.ESTALE), RunDirError, "resumes"),
    (of(errno.ENOMEM), BudgetError, "out of memory"),
    (MemoryError(), BudgetError, "out of memory"),
    (pa.ArrowMemoryError("malloc of size 64 failed"), BudgetError, "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), BudgetError, "out of memory"),
    (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory"), BudgetError, "out of memory"),
    (RuntimeError("could not create a primitive"), BudgetError, "out of memory"),
    (ImportError("x.so: failed to map segment from shared object"), BudgetError, "out of memory"),
    (ImportError("x.so: cannot open shared object file: Too many open files"), BudgetError, "ulimit -n"),
    (RuntimeError("can't start new thread"), BudgetError, "out of memory"),
    (
        Panic('ThreadPoolBuildError { kind: IOError(Os { code: 11, kind: WouldBlock, message: "x" }) }'),
        BudgetError,
        "out",
    ),
    (of(errno.EMFILE), BudgetError, "ulimit -n"),
    (of(errno.ENFILE), BudgetError, "ulimit -n"),
    (of(errno.ENAMETOOLONG, "y" * 100_000), RecipeError, "100,000 characters"),
]


@pytest.mark.parametrize(("error", "kind", "words"), TABLE, ids=lambda value: type(value).__name__)
def test_each_refusal_is_an_error_of_ours(error, kind, words):
    with pytest.raises(kind, match=words) as caught, machine_errors():
        raise error
    assert caught.value.__cause__ is error and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        RuntimeError("shapes differ"),
        FileNotFoundError(errno.ENOENT, "no", "x"),
        OSError("nothing"),
        RecursionError("too deep"),
        of(errno.EACCES, None),  # of a socket, for one
    ],
)
def test_all_else_goes_on_as_it_is(error):
    assert machine_error(error) is None
    with pytest.raises(type(error)) as caught, machine_errors():
        raise error
    assert caught.value is error


def test_an_error_of_ours_is_left_alone():
    for error in (DataError("a row quotes (os error 28)"), RunDirError("x")):
        with pytest.raises(LimbeckError) as caught, machine_errors(), disk_errors(Path("x")):
            raise error
        assert caught.value is error and os_error(error) is None


@pytest.mark.parametrize("cause", [MemoryError("malloc of size 64"), of(errno.EMFILE), pa.ArrowMemoryError("malloc")])
def test_exhaustion_is_no_fault_of_a_file(cause):
    """Readers take any trouble for damage."""

    def read():
        try:
            raise cause
        except (OSError, MemoryError) as error:
            raise StoreError("rows.parquet is damaged. Remove it.") from error

    with pytest.raises(BudgetError) as caught, machine_errors():
        read()
    assert "damaged" not in str(caught.value)


def test_memory_that_is_really_refused():
    """By torch's allocator, numpy and Arrow: a terabyte is more than any test machine gives."""
    for ask in (lambda: torch.empty(2**50), lambda: np.empty(2**47), lambda: pa.allocate_buffer(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert out_of_memory(caught.value), caught.value


# ---- writers ---------------------------------------------------------------------------------------------------------


def tensors(path):
    save_file({"a": torch.zeros(4096)}, path)


def table(path):
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(4096)}), path)


def feather(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.float64())])) as writer:
        writer.write_batch(pa.record_batch({"a": np.zeros(4096)}))


def tokenizer(path):
    tiny.build_tokenizer().backend_tokenizer.save(str(path))


WRITERS = {
    "bytes": lambda path: path.write_bytes(b"x" * 9999),
    "text": lambda path: path.write_text("x" * 9999),
    "safetensors": tensors,
    "parquet": table,
    "arrow": feather,
    "tokenizer": tokenizer,
    "numpy": lambda path: np.zeros(4096).tofile(path),
    "numpy's own": lambda path: np.save(path.open("wb"), np.zeros(4096)),
}


def in_a_process(work, *args) -> int:
    process = FORK.Process(target=work, args=args)
    process.start()
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def write_into_little(name: str, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    codes = []
    for into in (atomic_path, atomic_dir):
        try:
            with into(folder / name) as tmp:
                WRITERS[name](tmp / "file" if tmp.is_dir() else tmp)
        except BudgetError as error:
            codes.append("the disk is full" in str(error))
    os._exit(0 if codes == [True, True] and not list(folder.iterdir()) else 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_reads_the_same_from_every_writer(name, tmp_path):
    """A file that may not grow, in a process of its own; nothing half-written stays."""
    assert in_a_process(write_into_little, name, tmp_path) == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch, number):
    """On a disk that refuses, taking the temporary file away fails as well."""
    kind = BudgetError if number == errno.ENOSPC else RunDirError

    def refuse(*_args, **_kwargs):
        raise of(number)

    def unlink(*_args, **_kwargs):
        raise OSError(errno.EBUSY, "of the clean-up")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(kind, match=os.strerror(number)):
        atomic_write(tmp_path / "a", "text")
    with pytest.raises(kind, match=os.strerror(number)):
        append_durably(tmp_path / "b", b"{}\n")
    with pytest.raises(kind, match=os.strerror(number)), atomic_dir(tmp_path / "c") as tmp:
        (tmp / "x").write_text("x")
    assert not (tmp_path / "a").exists() and not (tmp_path / "c").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_fsynced_is_no_error(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def only_files(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise of(number)
        fsync(fd)

    monkeypatch.setattr(atomic.os, "fsync", only_files)
    fsync_dir(tmp_path)
    atomic_write(tmp_path / "a", "text")
    LineFile.open(tmp_path / "b").close()
    with atomic_dir(tmp_path / "c") as tmp:
        (tmp / "x").write_text("x")
    assert (tmp_path / "a").read_text() == "text" and (tmp_path / "c" / "x").exists()


def test_a_folder_on_a_failing_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", lambda _: (_ for _ in ()).throw(of(errno.EIO)))
    with pytest.raises(OSError, match="Input/output"):
        fsync_dir(tmp_path)
