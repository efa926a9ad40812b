"""Coders: typed streams to bytes and back, one per file."""
