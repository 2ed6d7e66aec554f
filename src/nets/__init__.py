"""Pure networks: torch in, torch out; nothing here knows of Lightning, Hydra or W&B."""
