"""Run a task: render prompts, have a backend answer them under a budget, store every reply, read the replies."""
