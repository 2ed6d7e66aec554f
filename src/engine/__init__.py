"""From a checked configuration to objects, and from objects to a run; torch is imported by its modules, not here."""
