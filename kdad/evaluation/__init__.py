"""How good a student is: metrics, figures on the test part, the results file, published figures.

May import `detection` and what that may.
"""
