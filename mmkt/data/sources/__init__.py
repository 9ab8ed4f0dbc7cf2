"""Data sets, one file each: ``mmkt data prepare NAME``."""
