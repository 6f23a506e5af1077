"""The report's inside: blocks, the sections made of them, and how they are written."""
