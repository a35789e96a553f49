"""The version of this package, also of a checkout that is not installed."""

__version__ = "0.1.0"
