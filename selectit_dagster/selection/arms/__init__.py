"""The selection arms: one file an arm, each of which enters itself into the registry."""
