"""The package's version, standing once."""

__version__ = "0.1.0"
