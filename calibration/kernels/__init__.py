"""Fits of the kernel models in `simulator/kernels/` to measured tables of single operators."""
