"""The miniature world: its data and models; what made them lies in ``tools/miniature``."""
