"""What-if planning: many simulations side by side."""
