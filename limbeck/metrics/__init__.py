"""Scores: fidelity to the teacher, calibration, intervals, pass@k. Pure maths on torch."""
