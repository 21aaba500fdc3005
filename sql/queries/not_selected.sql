-- Internal.
-- The rows of a selection's dataset that it did not take, with score and reason; a row that scored and gave no reason
-- was not_chosen. Parameters: selection_id, grader_id, rubric_id.
select
    r.position, g.score,
    coalesce(g.reason, case when g.example_id is null then 'not_graded' else 'not_chosen' end) as reason,
    g.explanation
from selections s
join dataset_rows r using (version_id)
left join graded g on g.example_id = r.example_id and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
where s.selection_id = $selection_id::uuid
  and not exists (select 1 from selection_rows k where k.selection_id = s.selection_id and k.position = r.position)
order by r.position;
