"""What is certainly broken about a row by its form alone: one function a defect, asked by the grader `rules`."""
