"""Train the compact teachers on labelled images."""
