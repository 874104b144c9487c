"""The package's version, standing once."""

__version__ = "0.2.0"
