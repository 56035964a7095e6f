"""Prompts of made-up experts, parted by their words, for the router's tests."""

from __future__ import annotations

import random

from limbeck.router.dataset import PromptCase

WORDS = {
    "code": "function loop variable string integer parse compile method class list tuple exception module import",
    "medical": "fever symptom patient dose clinic nurse tumour artery diagnosis infection vaccine kidney therapy rash",
    "maths": "equation sum fraction angle product divide prime triangle integral square root number proof digits",
    "music": "violin chord tempo melody concert drummer octave rhythm singer opera flute ballad guitar encore",
}
FRAMES = ("how do i explain {} and {}", "what is {} with {}", "tell me about {} {} please", "why does {} need {}?")


def prompts(kind: str, num: int, seed: int = 0) -> list[str]:
    """Different prompts of one kind."""
    draw = random.Random(f"{kind}-{seed}")
    words, made = WORDS[kind].split(), {}
    while len(made) < num:
        made[draw.choice(FRAMES).format(*draw.sample(words, 2)) + " " + draw.choice(words)] = None
    return list(made)


def cases(
    kinds: tuple[str, ...] = ("code", "medical", "maths"), *, train: int = 60, heldout: int = 40, cross: bool = False
) -> list[PromptCase]:
    """Of every kind; the expert is right on nine held-out prompts of ten, but never where "why" is asked; the teacher
    always is."""
    made = []
    for kind in kinds:
        texts = prompts(kind, train + heldout)
        made += [PromptCase(kind, text, "train") for text in texts[:train]]
        for at, text in enumerate(texts[train:]):
            own = 0.0 if text.startswith("why") else float(at % 10 != 3)
            quality = {kind: own, "teacher": 1.0, "generalist": 0.7}
            quality |= {other: 0.2 for other in kinds if other != kind} if cross else {}
            made.append(PromptCase(kind, text, "heldout", quality))
    return made


def costs(kinds: tuple[str, ...] = ("code", "medical", "maths"), cost: float = 0.2) -> dict[str, float]:
    return {**dict.fromkeys(kinds, cost), "teacher": 1.0}
