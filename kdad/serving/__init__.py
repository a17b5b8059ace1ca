"""Serving of students over HTTP."""
