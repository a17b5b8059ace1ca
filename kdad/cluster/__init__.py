"""Work spread over a Ray cluster: students to train, and images to judge."""
