"""Accelerators change how a policy runs its layers, beyond choosing tokens: VLA-Cache, EfficientVLA, ToMe."""
