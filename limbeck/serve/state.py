"""What all requests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.serve.catalogue import Catalogue
    from limbeck.serve.dispatch import Routes
    from limbeck.serve.pool import Pool
    from limbeck.serve.prometheus import Metrics
    from limbeck.serve.settings import Serving
    from limbeck.serve.upstream import Remotes


@dataclass
class House:
    """Everything that answers a request."""

    settings: Serving
    catalogue: Catalogue
    pool: Pool
    routes: Routes
    remotes: Remotes
    metrics: Metrics
