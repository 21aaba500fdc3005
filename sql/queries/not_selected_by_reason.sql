-- Internal.
-- Which reasons the grader itself gave for rows that a selection did not take, the most first. Parameters:
-- selection_id, grader_id, rubric_id.
select g.score, g.reason, count(*) as rows
from selections s
join dataset_rows r using (version_id)
join graded g on g.example_id = r.example_id and g.grader_id = $grader_id::uuid and g.rubric_id = $rubric_id::uuid
where s.selection_id = $selection_id::uuid
  and g.reason is not null
  and not exists (select 1 from selection_rows k where k.selection_id = s.selection_id and k.position = r.position)
group by all
order by rows desc, score desc, reason;
