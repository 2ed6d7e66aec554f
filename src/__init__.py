"""A research template: LightningModules and LightningDataModules, composed by Hydra."""
