-- Internal.
-- The ids of the newest version of a grader and of a rubric by their names; null for a name that is not there.
-- Parameters: grader_name, rubric_name.
select
    (select arg_max(grader_id, version)::varchar from graders where name = $grader_name) as grader_id,
    (select arg_max(rubric_id, version)::varchar from rubrics where name = $rubric_name) as rubric_id;
