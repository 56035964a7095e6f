"""Continuous batching: scheduler, memory, KV slots."""
