"""What all programs share: how they read flags, how they end, their progress bars, and the two command trees."""
