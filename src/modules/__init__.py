"""LightningModules: what is optimised and measured. They know nets through the config, and data not at all."""
