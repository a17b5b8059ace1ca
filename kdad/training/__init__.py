"""Making students: distillation, the epoch loop, remembered features, sweeps; and, in `pretraining`, teachers.

May import `evaluation` and what that may.
"""
