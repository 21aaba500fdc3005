-- Internal.
-- The labels and ids of a run's grader and rubric. Parameters: run_id.
select grader, rubric, grader_id, rubric_id from run_list where run_id = $run_id;
