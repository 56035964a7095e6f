"""Prompts, greedy answers and their marks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.evaluate.samples import TEXT_PROMPT, choose_prompts, mark, whole_characters, write_answers
from limbeck.types import Trace


def choose(rows, tokenizer, num, **settings):
    return choose_prompts(rows, tokenizer, num, **{"longest": 100, "seed": 0, **settings})


def test_prompts_of_text_and_chats(text_rows, chat_rows, tiny_tokenizer):
    (text,) = choose(text_rows[:1], tiny_tokenizer, 3)
    assert len(text.ids) == min(len(text_rows[0].ids) // 2, TEXT_PROMPT)
    assert text.text + text.truth == text_rows[0].text + "<|im_end|>"
    chat = choose(chat_rows, tiny_tokenizer, 3)[0]
    assert chat.text.endswith("<|im_start|>assistant\n") and chat.truth.endswith(".")


def test_prompts_cover_topics_and_are_seeded(text_rows, tiny_tokenizer):
    chosen = choose(text_rows, tiny_tokenizer, 3)
    assert {prompt.topic for prompt in chosen} == {"weather", "kitchen", "code"}
    ids = lambda seed: [prompt.id for prompt in choose(text_rows, tiny_tokenizer, 5, seed=seed)]  # noqa: E731
    assert ids(1) == ids(1) and ids(1) != ids(2) and len(set(ids(1))) == 5


def test_prompts_that_do_not_fit_are_left_out(text_rows, tiny_tokenizer):
    assert choose(text_rows, tiny_tokenizer, 4, longest=3) == []
    assert choose(text_rows, tiny_tokenizer, 0) == []
    shortest = replace(text_rows[0], ids=text_rows[0].ids[:2], spans=((1, 2),))
    assert len(choose([shortest], tiny_tokenizer, 1)[0].ids) == 1


def test_several_replies_to_one_prompt_are_asked_once(text_rows, tiny_tokenizer):
    row = text_rows[0]
    trace = Trace("t", "row", "heldout", "", row.text, row.ids, ((9, len(row.ids)),), "lm", "tok", "hash")
    chosen = choose([trace, replace(trace, id="u")], tiny_tokenizer, 4)
    assert len(chosen) == 1 and len(chosen[0].ids) == 9


def test_answers_are_greedy_and_marked_by_the_teacher(teacher, students, text_rows):
    prompts = choose(text_rows, teacher.tokenizer, 2)
    answers = write_answers(teacher, students, prompts, num_tokens=8)
    assert set(answers.tokens_per_second) == {"teacher", "student", "twin"}
    for prompt, by_model in zip(prompts, answers.by_prompt, strict=True):
        assert by_model["teacher"].pieces and all(piece.agrees for piece in by_model["teacher"].pieces)
        assert by_model["teacher"].finish_reason in ("stop", "length")
        # the first token of every model, worked out without packing or generation
        with torch.no_grad():
            ids = torch.from_numpy(prompt.ids.astype(np.int64))[None]
            top = {name: int(lm.model(ids).logits[0, -1].argmax()) for name, lm in students.items()}
            probs = torch.softmax(teacher.model(ids).logits[0, -1], -1)
        for name, token in top.items():
            piece = by_model[name].pieces[0]
            if len(teacher.tokenizer.decode([token])) == len(piece.text):
                assert piece.chance == pytest.approx(float(probs[token]), abs=1e-4)
                assert piece.agrees == (token == int(probs.argmax()))


def test_no_prompts_no_work(teacher, students):
    assert write_answers(teacher, students, [], num_tokens=8).by_prompt == []


def test_characters_of_several_tokens_stay_whole(teacher, tiny_tokenizer):
    prompt = np.array(tiny_tokenizer("The parser")["input_ids"], dtype=np.int32)
    reply = np.array(tiny_tokenizer(" reads 語 🎉 ok")["input_ids"], dtype=np.int32)
    cut = whole_characters(tiny_tokenizer, prompt, reply)
    texts = [text for _, text in cut]
    assert "".join(texts) == " reads 語 🎉 ok"
    assert any("語" in text for text in texts) and not any("\ufffd" in text for text in texts)
    assert [end for end, _ in cut] == sorted({end for end, _ in cut}) and cut[-1][0] == len(reply)
    pieces = mark(teacher, prompt, reply)
    assert [piece.text for piece in pieces] == texts
    assert all(0 <= piece.chance <= 1 for piece in pieces)


def test_a_reply_that_ends_within_a_character(tiny_tokenizer):
    prompt = np.array(tiny_tokenizer("x")["input_ids"], dtype=np.int32)
    reply = np.array(tiny_tokenizer("a🎉")["input_ids"], dtype=np.int32)[:-1]
    cut = whole_characters(tiny_tokenizer, prompt, reply)
    assert cut[-1] == (len(reply), "\ufffd") and cut[0] == (1, "a")
