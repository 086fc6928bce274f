"""Traces: events from a running machine or host, or from a file, as text, JSON lines or for Perfetto."""
