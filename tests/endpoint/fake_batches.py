"""Batches of a provider, as answers of the fake server: files up, a few looks until a batch ends, files down."""

from __future__ import annotations

import email
import email.policy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from tests.endpoint.fake_answers import as_json, error, plain

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.endpoint.fake_answers import Request

REFUSED = {"message": "maximum context length is 8 tokens", "code": "context_length_exceeded"}


def reply(body: dict[str, Any], index: int = 0) -> str:
    """What the model says: a function of the question and the seed."""
    return f"{body['messages'][-1]['content'].split()[-1]} by seed {body.get('seed', 0) % 97} {index}"


@dataclass
class Plan:
    """How a batch ends. `lost` requests have no result, `refused` and `failed` ones stand in the error file (for good,
    or with a status 500); `looks` it takes to end."""

    status: str = "completed"
    lost: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    garbage: bool = False
    problem: str = ""
    code: str = ""
    looks: int = 2
    ends: str = ""  # the word for its status, where it is not our own


@dataclass
class BatchServer:
    """`plans` of the batches in order, the last one for all further; `submitted` every custom id of every batch."""

    plans: list[Plan] = field(default_factory=lambda: [Plan()])
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    submitted: list[list[str]] = field(default_factory=list)
    live: int = 0
    drop_answers: int = 0  # batches that are created although the answer is an error
    gone: tuple[str, ...] = ()  # what is not found: "batch", "content"
    not_ready: list[tuple[int, bytes]] = field(default_factory=list)  # refusals before a batch is created

    async def answer(self, request: Request) -> AsyncGenerator[bytes]:
        path, _, query = request.path.removeprefix("/v1/").partition("?")
        match [request.line.split(" ")[0], *path.split("/")]:
            case ["POST", "files"]:
                yield as_json(self.upload(request))
            case ["GET", "files", _, "content"] if "content" in self.gone:
                yield as_json(error("No such File object"), "404 X")
            case ["GET", "batches", _] if "batch" in self.gone:
                yield as_json(error("No batch found with that id"), "404 X")
            case ["POST", "batches"] if self.not_ready:
                status, body = self.not_ready.pop()
                yield as_json(body, f"{status} X")
            case ["GET", "files", name, "content"]:
                yield plain(self.files[name])
            case ["POST", "batches"]:
                batch = self.create(request.json())
                dropped = self.drop_answers > 0
                self.drop_answers -= dropped
                yield as_json(error("gateway"), "502 X") if dropped else as_json(batch)
            case ["GET", "batches"]:
                newest = list(self.batches.values())[::-1][: int(parse_qs(query)["limit"][0])]
                yield as_json({"object": "list", "data": newest, "has_more": False})
            case ["GET", "batches", name]:
                yield as_json(self.look(self.batches[name]))
            case ["POST", "chat", "completions"]:
                self.live += 1
                yield as_json(self._answer(request.json()))
            case _:
                yield as_json(error("not found"), "404 X")

    def upload(self, request: Request) -> dict[str, Any]:
        head = f"Content-Type: {request.header('content-type')}\r\n\r\n".encode()
        form = email.message_from_bytes(head + request.body, policy=email.policy.HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        name = f"file-{len(self.files)}"
        self.files[name] = parts["file"].get_payload(decode=True)
        assert parts["purpose"].get_payload(decode=True) == b"batch"
        facts = {"bytes": len(self.files[name]), "created_at": 0, "filename": "x", "purpose": "batch"}
        return {"id": name, "object": "file", "status": "processed", **facts}

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert all(line["method"] == "POST" and line["url"] == body["endpoint"] for line in lines)
        self.submitted.append([line["custom_id"] for line in lines])
        name = f"batch-{len(self.batches)}"
        facts = {"id": name, "object": "batch", "created_at": 0, "status": "validating", **body}
        self.batches[name] = {**facts, "request_counts": {"total": len(lines), "completed": 0, "failed": 0}}
        return self.batches[name]

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        place = list(self.batches).index(batch["id"])
        plan = self.plans[min(place, len(self.plans) - 1)]
        batch["looks"] = batch.get("looks", 0) + 1
        if batch["looks"] >= plan.looks and batch["status"] not in (plan.status, plan.ends):
            self._end(batch, plan)
            batch["status"] = plan.ends or plan.status
        elif batch["status"] == "validating":
            batch["status"] = "in_progress"
        return {key: value for key, value in batch.items() if key != "looks"}

    def _end(self, batch: dict[str, Any], plan: Plan) -> None:
        batch["status"] = plan.status
        if plan.status == "failed":
            error = {"code": plan.code or "invalid", "message": plan.problem, "line": 1, "param": None}
            batch["errors"] = {"object": "list", "data": [error]}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        good, bad = [], []
        for place, line in enumerate(lines):
            if place in plan.lost:
                continue
            result = {"id": f"r-{place}", "custom_id": line["custom_id"], "error": None}
            if place in plan.refused or place in plan.failed:
                status = 400 if place in plan.refused else 500
                bad.append(result | {"response": {"status_code": status, "body": {"error": REFUSED}}})
            else:
                good.append(result | {"response": {"status_code": 200, "body": self._answer(line["body"])}})
        if plan.status == "expired":
            gone = {"code": "batch_expired", "message": "This request could not be executed in time."}
            bad += [{"custom_id": lines[place]["custom_id"], "response": None, "error": gone} for place in plan.lost]
        for key, results in (("output_file_id", good[::-1]), ("error_file_id", bad)):  # in any order
            if results:
                name = f"file-{len(self.files)}"
                text = "".join(json.dumps(result) + "\n" for result in results)
                stray = '{"custom_id": "someone else\'s", "response": null}\nnot JSON\n' if plan.garbage else ""
                self.files[name] = (stray + text).encode()
                batch[key] = name
        counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        batch["request_counts"] = counts

    @staticmethod
    def _answer(body: dict[str, Any]) -> dict[str, Any]:
        choices = [
            {"index": n, "finish_reason": "stop", "message": {"role": "assistant", "content": reply(body, n)}}
            for n in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": 10, "completion_tokens": 5 * len(choices), "total_tokens": 15}
        facts = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub-1", "system_fingerprint": "fp"}
        return {**facts, "choices": choices, "usage": usage}
