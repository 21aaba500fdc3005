-- Calibrations, newest first, with the labels of grader and reference. Parameters: grader_id, rubric_id, scored,
-- grader_name, rubric_name (each null for any).
select
    c.calibration_id::varchar as calibration_id, c.grader_id::varchar as grader_id, c.rubric_id::varchar as rubric_id,
    g.label as grader, b.label as rubric, c.scored, h.label as reference, s.label as reference_rubric,
    c.reference_grader_id::varchar as reference_grader_id, c.reference_rubric_id::varchar as reference_rubric_id,
    c.version_id::varchar as version_id, c.reference_threshold, c.verdict, c.facts, c.recorded_at
from calibrations c
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id)
join grader_labels h on h.grader_id = c.reference_grader_id
join rubric_labels s on s.rubric_id = c.reference_rubric_id
where ($grader_id::uuid is null or c.grader_id = $grader_id::uuid)
  and ($rubric_id::uuid is null or c.rubric_id = $rubric_id::uuid)
  and ($scored is null or c.scored = $scored)
  and ($grader_name is null or g.name = $grader_name)
  and ($rubric_name is null or b.name = $rubric_name)
order by c.recorded_at desc, c.calibration_id;
