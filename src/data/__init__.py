"""Data sets: what is read, how it is split, in which order it is served."""
