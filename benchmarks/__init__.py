"""Benchmarks of routing_ext against plain PyTorch: see README.md here."""
