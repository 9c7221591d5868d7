"""The version, in one place. `setup.py` runs this file by path, so it imports nothing."""

__version__ = "0.1.0"
