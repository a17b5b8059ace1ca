"""Evaluation of students: metrics, figures on the test split, the results file, published figures.

May import `detection` and what that may.
"""
