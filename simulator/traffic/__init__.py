"""What happens when requests arrive: traffic on one or several replicas of a model, and what users see of it."""
