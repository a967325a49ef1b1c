"""Conformance suites that ship with Flame, so that the author of a plugin runs the tests we run."""
