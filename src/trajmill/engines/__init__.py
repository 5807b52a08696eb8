"""Engines: where the work runs."""
