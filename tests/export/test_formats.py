"""Every format, from the command's own road: what comes back is a whole LocalLM that speaks as its source does."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

import limbeck
from limbeck.export.command import judged_on
from limbeck.export.verified import WRITERS, ParityRows, export_artifact
from limbeck.models.open import open_hf
from limbeck.models.sampling import write_all
from limbeck.recipe import make_export, packages_of
from limbeck.types import Sampling

IDS = np.arange(5, 35, dtype=np.int32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "quant"), [("safetensors", "float32"), ("safetensors", "int8"), ("gguf", "f32"), ("onnx", "fp32")]
)
def test_an_export_is_a_live_model(tiny_llama, tmp_path, kind, quant):
    settings = make_export(kind, quant, None)
    missing = [name for name in (WRITERS[kind][0], *dict(packages_of(settings))) if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    source = open_hf(tiny_llama, dtype="float32")
    judged = judged_on(source, None, None)
    made = export_artifact(tiny_llama, tmp_path / "out", settings, ParityRows(judged.rows[:4], judged.text))
    assert made.format == kind
    export = limbeck.open_lm(tmp_path / "out", dtype="float32" if kind == "safetensors" else "auto")
    assert export.tokenizer_hash == source.tokenizer_hash and export.fingerprint
    assert (export.vocab, export.end_ids, export.max_context) == (source.vocab, source.end_ids, source.max_context)
    assert export.tokenizer.chat_template
    near = 0.5 if quant == "int8" else 0.02
    logits_TV = export.logits(IDS)
    assert logits_TV.dtype == torch.float32 and logits_TV.shape == (len(IDS), source.vocab)
    assert torch.allclose(logits_TV, source.logits(IDS), atol=near)
    session = export.session()
    session.feed(IDS[:7])
    assert torch.allclose(session.feed(IDS[7:]), logits_TV[-1], atol=0.02)
    session.close()
    sampling = Sampling(temperature=0.0, max_tokens=5)
    (reply,) = export.generate([IDS], sampling)[0]
    assert reply.ids.tolist() == write_all(export, [IDS], sampling)[0][0].ids.tolist()
