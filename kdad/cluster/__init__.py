"""Training of students and scoring of images on a Ray cluster."""
