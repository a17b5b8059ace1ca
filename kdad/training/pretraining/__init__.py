"""Making the compact teachers from labelled images."""
