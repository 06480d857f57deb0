"""``tritonsyn tune``."""
