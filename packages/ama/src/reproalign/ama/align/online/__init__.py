"""Online PPO: prompts, rollouts, objective, update, what is kept of an iteration."""
