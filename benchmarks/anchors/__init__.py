"""What each term of the loss buys a network that reads image and caption freely."""
