"""What the project needs beside its package: benchmarks, torture, topology, pretraining, locks."""
