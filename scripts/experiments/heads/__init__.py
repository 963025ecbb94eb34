"""What does each head give on the same features, by the same protocol?"""
