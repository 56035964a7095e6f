"""What all requests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.serve.catalogue import Catalogue
    from limbeck.serve.dispatch import Routes
    from limbeck.serve.pool import ExpertPool
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Serving
    from limbeck.serve.upstream import UpstreamModels


@dataclass
class ServerState:
    """Everything that answers a request."""

    settings: Serving
    catalogue: Catalogue
    pool: ExpertPool
    routes: Routes
    remotes: UpstreamModels
    metrics: Metrics
