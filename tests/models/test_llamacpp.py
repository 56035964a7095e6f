from __future__ import annotations

import shutil
import threading
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from limbeck.errors import MissingExtra, TeacherError
from limbeck.export.gguf import write_gguf
from limbeck.models import llamacpp
from limbeck.models.llamacpp import LlamaLM
from limbeck.models.sampling import write_all, write_one
from limbeck.types import Sampling
from tests import tiny
from tests.export import gguf_models as small

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.models.hf import HfLM
    from limbeck.types import LocalLM

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("gguf", "cyllama")),
    reason="the packages of limbeck[export,llamacpp] are not installed",
)
IDS = (np.arange(100) * 7919 % tiny.VOCAB).astype(np.int32)


@pytest.fixture(scope="module")
def source() -> HfLM:
    return small.build("llama", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def folder(source: HfLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_gguf(folder, source, quant="f32")
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> LlamaLM:
    return LlamaLM.open(folder)


def test_it_is_a_live_model(lm: LlamaLM, source: HfLM, folder: Path) -> None:
    live: LocalLM = lm
    assert (live.name, live.vocab, live.max_context, live.end_ids) == (str(folder), tiny.VOCAB, 4096, [2])
    assert live.tokenizer_hash == source.tokenizer_hash
    assert live.fingerprint == LlamaLM.open(folder / "model.gguf").fingerprint != source.fingerprint


def test_a_session_gives_the_logits_of_the_whole_in_pieces(lm: LlamaLM, source: HfLM) -> None:
    whole_TV, session = lm.logits(IDS), lm.session()
    for start, end in ((0, 1), (1, 40), (40, 41), (41, 100)):
        logits_V = session.feed(IDS[start:end])
        assert logits_V.dtype == torch.float32 and logits_V.shape == (tiny.VOCAB,)
        torch.testing.assert_close(logits_V, whole_TV[end - 1], rtol=0, atol=0.02)
    config = source.model.config
    plain = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2  # keys, values; 16 bits
    assert plain <= session.token_bytes <= plain + 100  # and where it stands
    session.close()
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2"])  # Gemma keeps a cache of windows beside that of whole texts
def test_a_sequence_grows_beyond_its_first_room(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small.build(family, max_position_embeddings=4096)
    write_gguf(tmp_path, source, quant="f32")
    monkeypatch.setattr(llamacpp, "ROOM", 256)
    monkeypatch.setattr(llamacpp, "STEP", 256)
    long = np.resize(IDS, 1500)
    with torch.no_grad():
        ours_TV = source.model(torch.from_numpy(long.astype(np.int64))[None]).logits[0]
    session = LlamaLM.open(tmp_path).session()
    for start in range(0, 1500, 300):
        logits_V = session.feed(long[start : start + 300])
        torch.testing.assert_close(logits_V, ours_TV[min(start + 300, 1500) - 1], rtol=0, atol=0.03)
    session.close()
    torch.testing.assert_close(LlamaLM.open(tmp_path).logits(long), ours_TV, rtol=0, atol=0.03)


def test_sessions_do_not_see_each_other(lm: LlamaLM) -> None:
    alone, first, second = lm.session(), lm.session(), lm.session()
    expected_V = alone.feed(IDS[:20])
    first.feed(IDS[:10])
    second.feed(IDS[50:80])
    assert torch.equal(first.feed(IDS[10:20]), first.feed(IDS[20:21])) is False
    first.close()
    again = lm.session()  # in the memory that `first` gave back
    torch.testing.assert_close(again.feed(IDS[:20]), expected_V, rtol=0, atol=0)
    for one in (alone, second, again):
        one.close()
    assert len(lm.spare) == 1


def test_threads_write_at_the_same_time(lm: LlamaLM) -> None:
    greedy = Sampling(temperature=0, max_tokens=16)
    expected = {start: lm.generate([IDS[start : start + 9]], greedy)[0][0].text for start in range(0, 60, 10)}
    found: dict[int, str] = {}

    def write(start: int) -> None:
        found[start] = "".join(one.text for one in write_one(lm, IDS[start : start + 9], greedy))

    threads = [threading.Thread(target=write, args=(start,)) for start in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_replies_written_in_step_are_those_written_alone(lm: LlamaLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp, "TOGETHER", 3)
    prompts = [IDS[start : start + 1 + start // 4] for start in range(0, 70, 10)]
    for sampling in (Sampling(temperature=0, max_tokens=20), Sampling(n=2, max_tokens=20, seed=5, stop=("e",))):
        together, alone = lm.generate(prompts, sampling), write_all(lm, prompts, sampling)
        assert [len(replies) for replies in together] == [sampling.n] * 7
        for ours, theirs in zip(together, alone, strict=True):
            assert [(one.text, one.finish_reason) for one in ours] == [(one.text, one.finish_reason) for one in theirs]
    reasons = {reply.finish_reason for replies in together for reply in replies}
    assert reasons == {"stop", "length"}, "they end at different times"


def test_draws_depend_on_the_seed_alone(lm: LlamaLM) -> None:
    drawn = lm.generate([IDS[:5], IDS[5:9]], Sampling(n=2, max_tokens=12, seed=3))
    again = lm.generate([IDS[:5], IDS[5:9]], Sampling(n=2, max_tokens=12, seed=3))
    texts = [reply.text for replies in drawn for reply in replies]
    assert texts == [reply.text for replies in again for reply in replies] and len(set(texts)) == 4


def test_what_a_sequence_cannot_take(lm: LlamaLM, tmp_path: Path) -> None:
    session = lm.session()
    for ids in ([], [-1], [tiny.VOCAB]):
        with pytest.raises(TeacherError, match="one or more token ids below 384"):
            session.feed(np.array(ids, dtype=np.int32))
    write_gguf(tmp_path, small.build("llama"), quant="q8_0")
    short = LlamaLM.open(tmp_path)
    session = short.session()
    session.feed(np.resize(IDS, 128))
    with pytest.raises(TeacherError, match="reads at most 128 tokens; these are 129"):
        session.feed(IDS[:1])


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    LlamaLM.open(folder).logits(IDS)
    assert capfd.readouterr() == ("", "")


# ---- what is not opened ----------------------------------------------------------------------------------------------


def test_missing_parts_are_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match="there is no file .*model.gguf; allowed are a folder with model.gguf"):
        LlamaLM.open(tmp_path)
    shutil.copy(folder / "model.gguf", tmp_path / "alone.gguf")
    with pytest.raises(TeacherError, match=r"no tokenizer.json beside alone.gguf.*limbeck.open_lm\(FILE\)"):
        LlamaLM.open(tmp_path / "alone.gguf")
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"running model.gguf needs the package 'cyllama'.*limbeck\[llamacpp\]"):
        LlamaLM.open(folder)


def test_damaged_files_never_reach_llama_cpp(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x" / "model.gguf"
    whole = file.read_bytes()
    monkeypatch.setattr(llamacpp, "_bindings", lambda: pytest.fail("it was opened"))
    for content in (b"", whole[:3000], whole[:-1], b"PK" + whole, whole[:8] + b"\xff" * 8 + whole[16:]):
        file.write_bytes(content)
        with pytest.raises(TeacherError, match="model.gguf is not opened"):
            LlamaLM.open(tmp_path / "x")


def test_what_ends_llama_cpp_ends_a_process_of_its_own(tmp_path: Path, folder: Path) -> None:
    """Two tokens of one text: llama.cpp asserts that there are none such."""
    shutil.copytree(folder, tmp_path / "twice")
    file = tmp_path / "twice" / "model.gguf"
    whole, token = file.read_bytes(), b"\x01" + bytes(7)
    assert whole.count(token + b"a") == whole.count(token + b"b") == 1
    file.write_bytes(whole.replace(token + b"b", token + b"a"))
    with pytest.raises(TeacherError, match=r"llama.cpp ends its process on .*signal 6; .*token_to_id"):
        LlamaLM.open(tmp_path / "twice")


def test_what_llama_cpp_refuses_is_told(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    file = tmp_path / "x" / "model.gguf"
    file.write_bytes(file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(TeacherError, match="llama.cpp does not open .*architecture 'llama'"):
        LlamaLM.open(tmp_path / "x")


def test_another_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    small.bpe("smollm", vocab=384).save_pretrained(tmp_path / "x")
    with pytest.raises(TeacherError, match="llama.cpp makes other tokens of .*than the tokenizer.json beside"):
        LlamaLM.open(tmp_path / "x")
    file = tmp_path / "x" / "model.gguf"
    shutil.copytree(folder, tmp_path / "x", dirs_exist_ok=True)
    assert LlamaLM.open(tmp_path / "x")
    file.write_bytes(file.read_bytes().replace(b"gpt-2", b"qwen2"))
    with pytest.raises(TeacherError, match="a wrong rule for splitting text"):
        LlamaLM.open(tmp_path / "x")
