"""What we rely on in what others wrote."""
