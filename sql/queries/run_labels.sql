-- The labels of a run's grader and rubric. Parameters: run_id.
select grader, rubric from run_list where run_id = $run_id;
