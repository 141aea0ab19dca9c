"""Engines and what holds them: the seam, the vLLM adapter, slots and the fleet."""
