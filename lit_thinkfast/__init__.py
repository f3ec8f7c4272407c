"""lit-thinkfast."""
__version__ = "0.1.0"
