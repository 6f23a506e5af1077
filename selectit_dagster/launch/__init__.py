"""What starts the code location: ``selectit run``, ``selectit ui``, another project's component."""
