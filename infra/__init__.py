"""What runs the product elsewhere: the dated price table so far."""
