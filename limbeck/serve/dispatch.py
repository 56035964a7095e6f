"""Who answers: the expert that a name pins, the one that the router chooses, or another server.

A conversation stays on its expert: its first user turn is what the router looks at, and the last one only where the
first is nobody's. Nothing is remembered for that, because clients send the whole conversation each time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.serve.errors import ApiError, bad, no_model
from limbeck.serve.settings import AUTO
from limbeck.serve.threads import in_thread

if TYPE_CHECKING:
    from limbeck.experts import Expert, Registry
    from limbeck.router.estimates import Cascade
    from limbeck.router.router import RouteDecision, Router
    from limbeck.serve.logs import Log
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Routing
    from limbeck.serve.upstream import UpstreamModel

LONGEST_REASON = 200


@dataclass(frozen=True)
class Chosen:
    """`expert` is open here, or else `remote` answers. `route`: pinned, auto, fallback or cascade."""

    route: str
    reason: str
    expert: Expert | None = None
    remote: UpstreamModel | None = None
    confidence: float | None = None

    @property
    def model(self) -> str:
        """The name that the answer carries."""
        if self.expert is not None:
            return self.expert.name
        assert self.remote is not None
        return self.remote.name

    @property
    def field(self) -> dict[str, Any]:
        """`limbeck` of an answer."""
        name = f"{self.expert.name}@{self.expert.version}" if self.expert else None
        return {"expert": name, "route": self.route, "confidence": self.confidence, "reason": self.reason}

    @property
    def headers(self) -> dict[str, str]:
        sure = "" if self.confidence is None else f"; confidence={self.confidence:.3f}"
        expert = f"{self.expert.name}@{self.expert.version}" if self.expert else self.model
        return {
            "x-limbeck-expert": plain(expert),
            "x-limbeck-route": plain(f"{self.route}{sure}; reason={self.reason}"),
        }


def plain(text: str) -> str:
    """A header's value: printable ASCII, in one line, not long. What else stood there becomes a question mark."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:LONGEST_REASON].strip()


@dataclass
class Catalogue:
    """`newest` by name, `versions` by "name@version", `damaged` by "name/version" with the reason."""

    registry: Registry
    newest: dict[str, Expert] = field(default_factory=dict)
    versions: dict[str, Expert] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Read the registry. Files that did not change are not hashed again. Raises ExpertError when there is none."""
        every, damaged = self.registry.experts(every=True), self.registry.damaged()
        newest = {}
        for expert in every:  # newest first
            newest.setdefault(expert.name, expert)
        self.newest = newest
        self.damaged = {name: self._shown(reason) for name, reason in damaged.items()}
        self.versions = {f"{expert.name}@{expert.version}": expert for expert in every}

    def _shown(self, reason: str) -> str:
        """What a client may know: what is wrong, but not where on this machine, nor what its owner should do."""
        return reason.partition(" It is not used.")[0].replace(str(self.registry.path), "REGISTRY")

    async def keep_looking(self, seconds: float, log: Log) -> None:
        """Renew until cancelled; what was known stays when the registry cannot be read."""
        trouble, told = "", set(self.damaged)
        while True:
            await asyncio.sleep(seconds)
            before = set(self.versions)
            try:
                await in_thread(self.look)
                trouble = ""
            except Exception as error:  # whatever lies in a registry, it is looked at again
                if str(error) != trouble:
                    trouble = str(error)
                    log.event("registry", "error", message=trouble)
            for name in sorted(set(self.versions) - before):
                log.event("expert_added", expert=name)
            for name in sorted(before - set(self.versions)):
                log.event("expert_removed", expert=name)
            for name in sorted(set(self.damaged) - told):
                log.event("expert_damaged", "error", expert=name, reason=self.damaged[name])
            told = set(self.damaged)

    def find(self, name: str) -> Expert | None:
        """The expert of a name or "name@version"; None when nobody is called so. Raises ApiError 503 for one that is
        damaged. A name is only ever looked up, never made a path."""
        if found := self.newest.get(name) or self.versions.get(name):
            return found
        for place, reason in self.damaged.items():
            if name in (place.partition("/")[0], place.replace("/", "@", 1)):
                raise ApiError(503, f"The expert {name} is damaged: {reason}", param="model", code="expert_damaged")
        return None


@dataclass
class Routes:
    """`router` is None where none was fitted; `no_router` says why one that is there cannot be used. `backends` are by
    name, `upstream` is the teacher."""

    settings: Routing
    catalogue: Catalogue
    metrics: Metrics
    router: Router | None
    upstream: UpstreamModel | None
    backends: dict[str, UpstreamModel]
    no_router: str = ""

    def names(self) -> list[str]:
        """What a client may ask for."""
        found = sorted(self.catalogue.newest)
        found += [name for name in sorted(self.backends) if name not in found]
        found += [AUTO] if self.router is not None else []
        return found + ([self.upstream.name] if self.upstream is not None else [])

    def choose(self, model: str, turns: list[str]) -> Chosen:
        """Who answers a request for `model`; `turns` are what the user said, first to last. Raises ApiError."""
        if model == AUTO:
            return self._auto(turns)
        if model in self.backends:
            return Chosen("pinned", "asked for by name", remote=self.backends[model])
        if expert := self.catalogue.find(model):
            return Chosen("pinned", "asked for by name", expert=expert)
        if self.upstream is not None and model == self.upstream.name:
            return Chosen("pinned", "asked for by name", remote=self.upstream)
        raise no_model(model, self.names())

    def _auto(self, turns: list[str]) -> Chosen:
        if self.router is None and self.no_router:
            raise ApiError(503, f"The router cannot be used: {self.no_router}", param="model", code="router_damaged")
        if self.router is None:
            raise ApiError(
                404,
                "The model `auto` needs a router, and this registry has none. Fit one (limbeck route fit REGISTRY) and "
                f"start the server again, or ask for a model by name: {', '.join(self.names()) or 'none'}.",
                param="model",
                code="model_not_found",
            )
        if not turns:
            raise bad("The model `auto` chooses by text: give the prompt as text, or name a model.", "prompt")
        decision = self._decided(turns[0])
        if decision.expert is None and len(turns) > 1:
            decision = self._decided(turns[-1])
        elif len(turns) > 1:
            return self._to_expert(decision, f"the conversation stays on its first turn's expert; {decision.reason}")
        return self._to_expert(decision, decision.reason)

    def _decided(self, prompt: str) -> RouteDecision:
        assert self.router is not None
        begun = time.perf_counter()
        try:
            return self.router.decide(prompt)
        finally:
            self.metrics.observe("limbeck_router_seconds", time.perf_counter() - begun)

    def _to_expert(self, decision: RouteDecision, reason: str) -> Chosen:
        confidence = round(float(decision.confidence), 4)
        if decision.expert is None:
            return self._fallback(reason, confidence)
        if decision.expert in self.backends:
            return Chosen("auto", reason, remote=self.backends[decision.expert], confidence=confidence)
        try:
            expert = self.catalogue.find(decision.expert)
        except ApiError as error:
            return self._fallback(f"{reason}; {error.message}", confidence, error)
        if expert is None:
            return self._fallback(f"{reason}; the expert {decision.expert} is not here", confidence)
        return Chosen("auto", reason, expert=expert, confidence=confidence)

    def judge(self, chosen: Chosen) -> Cascade | None:
        """Who says whether the expert's reply stands; None where it always does."""
        if not self.settings.cascade or chosen.route != "auto" or chosen.expert is None or self.router is None:
            return None
        return self.router.cascades.get(chosen.expert.name)

    def doubted(self, chosen: Chosen, judge: Cascade, mean_logp: float) -> Chosen | None:
        """Who is asked instead of the expert, whose reply is there; None where it stands."""
        right = judge.right(mean_logp)
        least = judge.threshold if self.settings.cascade_threshold is None else self.settings.cascade_threshold
        if right >= least:
            return None
        reason = f"{chosen.model} answered, {right:.0%} sure to be right; at least {least:.0%} is wanted"
        return Chosen("cascade", reason, remote=self.upstream, confidence=round(right, 4))

    def _fallback(self, reason: str, confidence: float, error: ApiError | None = None) -> Chosen:
        if self.upstream is not None and self.settings.fallback != "refuse":
            return Chosen("fallback", reason, remote=self.upstream, confidence=confidence)
        if error is not None:
            raise error
        raise ApiError(
            404,
            f"No expert here is meant for this prompt, and there is no fallback ({reason}). Ask for a model by name.",
            param="model",
            code="out_of_scope",
        )
