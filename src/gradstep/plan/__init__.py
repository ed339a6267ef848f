"""The plan: what will be done and why, decided before the first step, printed, and kept as plan.json."""
