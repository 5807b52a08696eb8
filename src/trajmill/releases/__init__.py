"""Releases: exports of a store for users. A format is one module with one function."""
