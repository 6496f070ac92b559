"""Adapters that the tests run in workers."""
