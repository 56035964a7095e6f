"""Which experts there are now: a look at the registry that is renewed while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from limbeck.errors import ExpertError
from limbeck.serve.errors import ApiError

if TYPE_CHECKING:
    from limbeck.experts import Expert, Registry
    from limbeck.serve.logs import Log


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
            with contextlib.suppress(OSError):
                try:
                    await asyncio.to_thread(self.look)
                    trouble = ""
                except ExpertError as error:
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
