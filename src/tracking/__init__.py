"""Where a run's numbers and pictures go: the run folder, Weights & Biases, the terminal."""
