"""Rating: prompts, rating tokens, the scoring engine, stored scores and the equations."""
