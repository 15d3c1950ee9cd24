"""What is asked of advisers and of finished runs, outside training."""
