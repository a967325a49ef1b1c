"""The version of the distribution, readable without any other import."""

__version__ = "0.1.0"
