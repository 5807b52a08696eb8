"""Stores: where committed frames live."""
