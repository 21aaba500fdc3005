"""What can be asked: one file a task, found by its name. `batcher.engine.task` says what a task is."""
