"""Answers in the shapes of real providers and servers, as their pages and their users' reports show them, and what is
to be read in each. The words are ours: every one says "a bird", in two tokens of a prompt of ten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
THOUGHT = "It has wings."


@dataclass(frozen=True)
class Shape:
    """`read` are text, reasoning, finish reason, and the tokens of prompt and reply that may be billed; or a part of
    the message by which it is told. `logprobs`: they were asked for."""

    name: str
    body: Any
    read: tuple[str, str, str, int | None, int | None] | str
    logprobs: int = 0
    status: int = 200


def chat(
    message: dict[str, Any] | None = None, finish: Any = "stop", usage: Any = USAGE, **more: Any
) -> dict[str, Any]:
    """`more` are keys of the choice; those of the body are joined with `|`."""
    said = {"role": "assistant", "content": "a bird"} | (message or {})
    choice = {"index": 0, "message": said, "finish_reason": finish, **more}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def spelled(token: str, logprob: Any, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), **more}


def told(alternative: Any, **more: Any) -> dict[str, Any]:
    """Log-probs in the shape of chats; at each position stands one that cannot be, by this number."""
    return {
        "content": [
            spelled(token, -0.1, top_logprobs=[spelled(token, -0.1), spelled("zz", alternative)], **more)
            for token in ("a", " bird")
        ]
    }


SIDE_BY_SIDE = {
    "tokens": ["a", " bird"],
    "token_logprobs": [-0.1, -0.1],
    "top_logprobs": [{"a": -0.1}, {" bird": -0.1, "zz": -9999.0}],
}
PLAIN = ("a bird", "", "stop", 10, 2)
THOUGHTFUL = ("a bird", THOUGHT, "stop", 10, 2)


def spent(thought: int, **more: Any) -> dict[str, Any]:
    """Usage with reasoning beside the reply's two tokens."""
    return {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "completion_tokens_details": {"reasoning_tokens": thought},
        **more,
    }


def error(status: int, body: Any, read: str, name: str) -> Shape:
    return Shape(name, body, read, status=status)


SHAPES = [
    # OpenAI
    Shape(
        "OpenAI",
        chat({"refusal": None, "annotations": []}, logprobs=None)
        | {"system_fingerprint": None, "service_tier": "default"},
        PLAIN,
    ),
    Shape(
        "OpenAI, hidden reasoning",
        chat(usage=spent(1, completion_tokens=3, total_tokens=13)),
        ("a bird", "", "stop", 10, 3),
    ),
    Shape(
        "OpenAI, budget gone",
        chat({"content": ""}, "length", spent(32, completion_tokens=32)),
        ("", "", "length", 10, 32),
    ),
    Shape("OpenAI, refusal", chat({"content": None, "refusal": "I will not."}), ("I will not.", "", "refusal", 10, 2)),
    Shape("OpenAI, log-probs", chat(logprobs={**told(-9999.0), "refusal": None}), PLAIN, logprobs=2),
    Shape(
        "OpenAI, a tool",
        chat(
            {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}, "tool_calls"
        ),
        ("", "", "tool_calls", 10, 2),
    ),
    # Azure
    Shape(
        "Azure",
        chat(content_filter_results={"hate": {"filtered": False}}) | {"prompt_filter_results": [{"prompt_index": 0}]},
        PLAIN,
    ),
    Shape(
        "Azure, filtered",
        chat({"content": "a"}, "content_filter", content_filter_results={"hate": {"filtered": True}}),
        ("a", "", "content_filter", 10, 2),
    ),
    Shape("Azure, nothing left", chat({"content": None}, "content_filter"), ("", "", "content_filter", 10, 2)),
    error(
        400,
        {
            "error": {
                "message": "The response was filtered",
                "code": "content_filter",
                "status": 400,
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        "content_filter",
        "Azure, prompt filtered",
    ),
    # Mistral
    Shape("Mistral", chat({"tool_calls": None, "prefix": False}), PLAIN),
    Shape(
        "Mistral, thinking",
        chat(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}], "closed": True},
                    {"type": "text", "text": "a bird"},
                ]
            }
        ),
        THOUGHTFUL,
    ),
    Shape("Mistral, its context", chat(finish="model_length"), ("a bird", "", "length", 10, 2)),
    Shape(
        "Mistral, references",
        chat({"content": [{"type": "text", "text": "a "}, {"type": "reference", "reference_ids": [1]}]}),
        "'reference'",
    ),
    error(
        422,
        {
            "object": "error",
            "message": {"detail": [{"loc": ["body"], "msg": "Extra inputs"}]},
            "type": "invalid_request_error",
        },
        "Extra inputs",
        "Mistral, refused",
    ),
    # DeepSeek
    Shape("DeepSeek", chat({"reasoning_content": THOUGHT}, usage=USAGE | {"prompt_cache_hit_tokens": 0}), THOUGHTFUL),
    Shape("DeepSeek, too busy", chat(finish="insufficient_system_resource"), "insufficient_system_resource"),
    error(
        400,
        {"error": {"message": "Content Exists Risk", "type": "invalid_request_error", "code": "invalid_request_error"}},
        "content_filter",
        "DeepSeek, moderated",
    ),
    # Gemini's OpenAI surface
    Shape(
        "Gemini",
        chat(usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 112}),
        ("a bird", "", "stop", 10, 102),
    ),
    Shape(
        "Gemini, budget gone",
        {
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant"}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 42},
        },
        ("", "", "length", 10, 32),
    ),
    Shape("Gemini, capitals", chat(finish="MAX_TOKENS"), ("a bird", "", "length", 10, 2)),
    Shape(
        "Gemini, prohibited",
        chat({"content": None}, "content_filter: PROHIBITED_CONTENT"),
        ("", "", "content_filter", 10, 2),
    ),
    error(
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "API key not valid. Please pass a valid API key.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
        "refuses every request",
        "Gemini, key",
    ),
    error(
        429,
        [{"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}],
        "overload",
        "Gemini, quota",
    ),
    # Groq
    Shape(
        "Groq",
        chat(usage=USAGE | {"queue_time": 0.01, "prompt_time": 0.002, "total_time": 0.1}) | {"x_groq": {"id": "r"}},
        PLAIN,
    ),
    Shape("Groq, reasoning", chat({"reasoning": THOUGHT}), THOUGHTFUL),
    # Together
    Shape("Together", chat({"tool_calls": []}, "eos", logprobs=None, seed=7) | {"prompt": []}, PLAIN),
    Shape(
        "Together, log-probs",
        chat(
            finish="eos",
            logprobs={
                "token_ids": [5, 6],
                "tokens": ["a", " bird"],
                "token_logprobs": [-0.1, None],
                "top_logprobs": [None, {" bird": -0.2}],
            },
        ),
        PLAIN,
        logprobs=1,
    ),
    # Fireworks
    Shape(
        "Fireworks",
        chat(
            usage={"prompt_tokens": 10, "total_tokens": 12, "completion_tokens": 2},
            logprobs=SIDE_BY_SIDE | {"text_offset": [0, 1]},
        ),
        PLAIN,
        logprobs=2,
    ),
    error(
        400,
        {
            "error": {
                "object": "error",
                "type": "invalid_request_error",
                "message": "The prompt is too long: 9001, model maximum context length: 8192",
            }
        },
        "context_length",
        "Fireworks, too long",
    ),
    # OpenRouter
    Shape(
        "OpenRouter",
        chat(
            {"refusal": None, "reasoning": THOUGHT, "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT}]},
            native_finish_reason="STOP",
            logprobs=None,
        )
        | {"provider": "p"},
        THOUGHTFUL,
    ),
    Shape(
        "OpenRouter, details alone",
        chat({"reasoning": None, "reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}]}),
        THOUGHTFUL,
    ),
    Shape(
        "OpenRouter, broke off",
        chat({"content": ""}, "error", native_finish_reason="error", error={"code": 502, "message": "Provider down"}),
        "'error'",
    ),
    Shape("OpenRouter, provider down", {"error": {"code": 502, "message": "Provider returned error"}}, "server"),
    error(
        403,
        {"error": {"code": 403, "message": "Forbidden", "metadata": {"reasons": ["violence"], "flagged_input": "..."}}},
        "content_filter",
        "OpenRouter, moderated",
    ),
    # vLLM
    Shape(
        "vLLM",
        chat({"reasoning_content": THOUGHT, "tool_calls": []}, stop_reason=None, logprobs=None)
        | {"prompt_logprobs": None, "kv_transfer_params": None},
        THOUGHTFUL,
    ),
    Shape("vLLM, newer", chat({"reasoning": THOUGHT, "reasoning_content": None}), THOUGHTFUL),
    Shape("vLLM, ids", chat(logprobs=told(-9999.0), token_ids=[5, 6]), PLAIN, logprobs=2),
    Shape("vLLM, aborted", chat(finish="abort"), "'abort'"),
    error(
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 8192 tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        "context_length",
        "vLLM, too long",
    ),
    # SGLang
    Shape(
        "SGLang",
        chat(usage=USAGE | {"prompt_tokens_details": None, "reasoning_tokens": 0}, matched_stop=2)
        | {"metadata": {"weight_version": "d"}},
        PLAIN,
    ),
    Shape("SGLang, its own form", chat(finish={"type": "stop", "matched": 2}), PLAIN),
    Shape("SGLang, null", chat(logprobs=told(None)), PLAIN, logprobs=2),
    # llama.cpp
    Shape(
        "llama.cpp",
        chat({"reasoning_content": THOUGHT}) | {"timings": {"predicted_n": 2}, "system_fingerprint": "b1-x"},
        THOUGHTFUL,
    ),
    Shape("llama.cpp, log-probs", chat(logprobs=told(float("-inf"), id=7)), PLAIN, logprobs=2),
    Shape(
        "llama.cpp, loading",
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        "overload",
    ),
    # Ollama
    Shape("Ollama", chat() | {"system_fingerprint": "fp_ollama"}, PLAIN),
    Shape("Ollama, all of it reasoning", chat({"content": "", "reasoning": THOUGHT}), ("", THOUGHT, "stop", 10, 2)),
    Shape("Ollama, loaded", chat({"content": ""}, "load", None), "'load'"),
    # LM Studio
    Shape("LM Studio", chat(logprobs=None) | {"stats": {"stop_reason": "eosFound"}, "runtime": {"name": "x"}}, PLAIN),
    Shape("LM Studio, its own words", chat(finish="maxPredictedTokensReached"), ("a bird", "", "length", 10, 2)),
    error(400, {"error": "Model does not exist"}, "Model does not exist", "LM Studio, a text"),
    # Perplexity
    Shape(
        "Perplexity",
        chat(delta={"role": "assistant", "content": ""}) | {"citations": ["https://x.example"], "search_results": []},
        PLAIN,
    ),
    Shape(
        "Perplexity, research",
        chat(
            {"content": "<think>hm</think>a bird"},
            usage=USAGE | {"citation_tokens": 200, "num_search_queries": 3, "reasoning_tokens": 900},
        ),
        ("<think>hm</think>a bird", "", "stop", 10, 902),
    ),
    # others
    Shape("text-generation-inference", chat(finish="eos_token"), PLAIN),
    Shape("Anthropic's surface", chat(finish="end_turn", usage={"input_tokens": 10, "output_tokens": 2}), PLAIN),
    Shape("Cohere's surface", chat(finish="COMPLETE", usage={"prompt_tokens": 10.0, "completion_tokens": 2.0}), PLAIN),
    Shape(
        "xAI",
        chat({"reasoning_content": THOUGHT}, usage=spent(300, total_tokens=312)),
        ("a bird", THOUGHT, "stop", 10, 302),
    ),
    Shape("no usage", chat(usage=None), ("a bird", "", "stop", None, None)),
    Shape("counts nothing", chat(usage=dict.fromkeys(USAGE, 0)), ("a bird", "", "stop", None, None)),
    Shape(
        "no reason, no index", {"choices": [{"message": {"content": "a bird"}}]}, ("a bird", "", "unknown", None, None)
    ),
    Shape("a word of its own", chat(finish="paused_for_tea"), ("a bird", "", "paused_for_tea", 10, 2)),
    Shape("minus infinity, not a number", chat(logprobs=told(float("nan"))), "nan", logprobs=2),
    Shape("no log-probs", chat(), "there are none", logprobs=2),
    Shape(
        "nothing told at a position",
        chat(logprobs={"tokens": ["a", " bird"], "token_logprobs": [None, None]}),
        "not told",
        logprobs=2,
    ),
    Shape(
        "MiniMax, an error in a good body",
        {"base_resp": {"status_code": 1004, "status_msg": "login fail"}, "choices": None},
        "login fail",
    ),
    Shape("an error as an object", {"object": "error", "message": "no such adapter", "code": 40401}, "no such adapter"),
    Shape("an answer to something else", {"id": "r", "object": "response", "output": []}, "choices"),
    Shape("a picture", chat({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}), "'image_url'"),
]
