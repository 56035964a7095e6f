"""The trace store: atomically written shards of traces and their packed targets."""

from limbeck.store.codec import Codec
from limbeck.store.header import VERSION, StoreHeader, context_hash, trace_id
from limbeck.store.reader import TraceStore
from limbeck.store.writer import StoreWriter, read_header

__all__ = ["VERSION", "Codec", "StoreHeader", "StoreWriter", "TraceStore", "context_hash", "read_header", "trace_id"]
