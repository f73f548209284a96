"""What the server knows about models: their families, and the one it brings along."""
