"""Does it learn? See `__main__`."""
