"""RLHF and its baselines: fine-tuning with penalties, RAFT, DPO, PPO; the reward model."""
