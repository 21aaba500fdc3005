-- A grader and a rubric as a person names them, with the rubric's scale. Parameters: grader_id, rubric_id.
select g.label as grader, g.name as grader_name, b.label as rubric, b.name as rubric_name,
       b.scale_low as low, b.scale_high as high, b.scale_step as step, b.threshold
from grader_labels g, rubric_labels b
where g.grader_id = $grader_id::uuid and b.rubric_id = $rubric_id::uuid;
