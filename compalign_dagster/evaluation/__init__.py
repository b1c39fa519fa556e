"""What the decision was worth: agreement with people and downstream retrieval."""
