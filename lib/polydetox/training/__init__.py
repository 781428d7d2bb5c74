"""What the trainings of several chapters share."""
