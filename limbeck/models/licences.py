"""Licences as the Hub names them, and what becomes of a teacher's."""

from __future__ import annotations

HUB_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "unlicense", "cc0-1.0"),
        *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("openrail", "openrail++", "bigscience-openrail-m", "bigscience-bloom-rail-1.0", "bigcode-openrail-m"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "unknown", "other"),
    }
)
"""Identifiers that the Hub knows; any other licence is written as `other` with its name."""

TERMS = "A student carries what it learned from its teacher and its data: their terms apply to it."
