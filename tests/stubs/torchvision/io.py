"""transformers imports this, where it finds torchvision, and uses nothing of it here."""
