"""Crystals as files tell of them: read, checked and turned into neighbours by worker processes, without torch."""
